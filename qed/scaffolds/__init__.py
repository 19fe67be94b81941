"""Ways to spend more than one completion on a problem.

A scaffold is a module with one public coroutine

  solve(problem, llm, config) -> Solution

where `llm` is any `types.Llm`, or one for each role ('solver', 'verifier', ...;
a role that is missing is the solver's), and `config` a `calls.Setup`. All of
them ask through `calls.Calls`, which keeps the budget, the seeds and the trace,
and read verdicts with `parsing`. Three rules hold for each:

* A call that failed, was cut off in its thinking or came back empty is an
  answer without text; what a scaffold does then is written in its docstring,
  and counted in the usage.
* A reply that was cut off at its limit has no verdict; and one whose verdict
  cannot be read is no verdict, never a guess.
* When the budget runs out, the scaffold returns its best so far.
"""
