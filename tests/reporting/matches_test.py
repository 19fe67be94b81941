"""Texts stand side by side as text, whatever is in them."""

from qed.reporting import matches

ROW = {
  'name': 'i1',
  'text': 'Prove that <b>all</b> $a<b$ hold',
  'other_name': 'b/1',
  'other_text': 'Show that <b>all</b> $a<b$ hold',
  'how': 'ratio 0.95',
  'is_removed': True,
}


def page(tmp_path, *rows, max_rows=10):
  path = tmp_path / 'page.html'
  matches.write(path, 'A title', rows, max_rows=max_rows)
  return path.read_text(encoding='utf-8')


def test_nothing_in_a_text_is_markup(tmp_path):
  evil = '</div><script>alert(1)</script><img src=x onerror=alert(1)>'
  html = page(tmp_path, ROW | {'text': evil, 'name': evil, 'how': evil})
  assert '<script' not in html
  assert '<img' not in html
  assert '&lt;script&gt;' in html


def test_what_differs_is_marked_on_both_sides(tmp_path):
  html = page(tmp_path, ROW)
  assert '<mark>Prove</mark>' in html
  assert '<mark>Show</mark>' in html
  assert html.count('<mark>') == 2
  assert '&lt;b&gt;all&lt;/b&gt; $a&lt;b$ hold' in html


def test_what_became_of_a_pair_is_said(tmp_path):
  html = page(tmp_path, ROW, ROW | {'is_removed': False})
  assert html.count('<span class="gone">removed</span>') == 1
  assert html.count('kept, to be looked at') == 1


def test_a_long_list_is_cut_and_says_so(tmp_path):
  html = page(tmp_path, ROW, ROW, ROW, max_rows=2)
  assert html.count('class="pair"') == 2
  assert '1 more are in the file beside this page' in html


def test_the_page_needs_no_network(tmp_path):
  html = page(tmp_path, ROW)
  assert 'http' not in html
  assert 'src=' not in html
