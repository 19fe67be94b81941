// The proof viewer. All that comes from the data is inserted as text.
'use strict';

const runs = JSON.parse(document.getElementById('data').textContent);
const find = (id) => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  element.append(...children);  // Strings become text nodes.
  return element;
}

// Text with formulas, unless the source is asked for.
function prose(text) {
  const element = make('div', {class: 'text'}, text);
  if (!find('source').checked) {
    renderMathInElement(element, {
      delimiters: [
        {left: '$$', right: '$$', display: true},
        {left: '\\[', right: '\\]', display: true},
        {left: '\\(', right: '\\)', display: false},
        {left: '$', right: '$', display: false},
      ],
      throwOnError: false,
    });
  }
  return element;
}

function folded(title, ...content) {
  return make('details', {}, make('summary', {}, title), ...content);
}

const SCORE_COLORS = [
  '#9c2f2f', '#a8481f', '#a8641f', '#967a1c', '#7c841f', '#5b8030', '#3b7d3a',
  '#1f6e4a',
];

function badge(grade) {
  const graded = grade && grade.score !== null && grade.score !== undefined;
  const color = graded ? SCORE_COLORS[grade.score] : '#5c5c5c';
  const text = graded ? `${grade.score}/7` : (grade && grade.status) || '?';
  return make('span', {class: 'score', style: `background:${color}`}, text);
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function figure(value, digits = 2) {
  return value === null || value === undefined ? '–' : value.toFixed(digits);
}

// Each token on a ground that darkens with |trainer - sampler|: blue where the
// trainer finds the token likelier, red where less so.
function tokenView(rollout) {
  const box = make('div', {class: 'text'});
  rollout.tokens.forEach((token, index) => {
    const sampler = rollout.logprobs[index];
    const trainer = rollout.trainer_logprobs[index];
    const known = typeof sampler === 'number' && typeof trainer === 'number';
    const difference = known ? trainer - sampler : 0;
    const strength = Math.min(1, Math.sqrt(Math.abs(difference)));
    const hue = difference > 0 ? '31,95,168' : '194,73,29';
    box.append(make('span', {
      class: 'token',
      style: `background:rgba(${hue},${(0.75 * strength).toFixed(3)})`,
      title: `${JSON.stringify(token)}\nsampler ${figure(sampler, 5)}\n` +
        `trainer ${figure(trainer, 5)}\n` +
        `difference ${known ? difference.toExponential(2) : '–'}\n` +
        `version ${rollout.versions[index]}`,
    }, token));
  });
  return box;
}

function proofView(rollout) {
  if (find('tokens').checked && rollout.tokens && rollout.trainer_logprobs) {
    return [tokenView(rollout)];
  }
  const [before, ...after] = rollout.text.split('</think>');
  if (!after.length) return [prose(rollout.text)];
  return [
    folded(`reasoning, ${before.length} characters`, prose(before)),
    prose(after.join('</think>')),
  ];
}

function member(rollout, index) {
  const {grade, versions = []} = rollout;
  const facts = rollout.facts || [
    `reward ${figure(rollout.reward)}`,
    `advantage ${figure(rollout.advantage)}`,
    `${rollout.token_ids.length} tokens`,
    rollout.finish_reason,
  ];
  if (versions.length) {
    const oldest = Math.min(...versions), newest = Math.max(...versions);
    facts.push(oldest === newest ? `version ${oldest}`
      : `versions ${oldest} to ${newest}`);
  }
  const card = make('div', {class: 'card member'},
    make('h3', {}, rollout.name || `rollout ${index}`, badge(grade)),
    make('p', {class: 'note'}, facts.join(' · ')),
    ...proofView(rollout));
  if (grade && grade.feedback) {
    card.append(folded(`verdict of ${grade.judge}`, prose(grade.feedback)));
  }
  return card;
}

function shown() {
  const run = runs[find('run').value];
  return [run, run.groups[find('group').value]];
}

function show() {
  const [run, group] = shown();
  const problem = group.problem || {};
  const kind = group.rollouts[0].kind;
  const title = kind && kind !== 'plain' ? ` (${kind})` : '';
  const parts = [make('h3', {}, group.problem_id + title)];
  parts.push(prose(problem.statement || 'The statement is not in the run.'));
  if (problem.rubric) parts.push(folded('rubric', prose(problem.rubric)));
  if (problem.reference) {
    parts.push(folded('reference proof', prose(problem.reference)));
  }
  find('problem').replaceChildren(...parts);
  find('members').replaceChildren(...group.rollouts.map(member));
  find('count').textContent =
    `${run.groups.length} of ${run.num_groups} groups are on this page`;
  find('tokens').disabled = !group.rollouts.some((r) => r.trainer_logprobs);
}

function fillGroups() {
  const run = runs[find('run').value];
  find('group').replaceChildren(...run.groups.map((group, index) => {
    const rewards = group.rollouts.map((r) => r.reward)
      .filter((r) => r !== null && r !== undefined);
    const when = group.step === null ? '' : `step ${group.step}, `;
    const reward = rewards.length ? figure(mean(rewards)) : 'none';
    return make('option', {value: index},
      `${when}group ${group.group_id}: reward ${reward}`);
  }));
  show();
}

function move(by) {
  const select = find('group');
  const count = select.options.length;
  select.value = (Number(select.value) + by + count) % count;
  show();
}

if (runs.length) {
  find('no-proofs').hidden = true;
  find('viewer').hidden = false;
  find('run').replaceChildren(
    ...runs.map((run, index) => make('option', {value: index}, run.name)));
  find('run').addEventListener('change', fillGroups);
  for (const id of ['group', 'source', 'tokens']) {
    find(id).addEventListener('change', show);
  }
  find('previous').addEventListener('click', () => move(-1));
  find('next').addEventListener('click', () => move(1));
  fillGroups();
}
