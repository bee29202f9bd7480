"""The report's style sheet: light and dark, wide and narrow, screen and paper."""

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1d21; --faint: #5f6770;
  --line: #e1e4e8; --well: #f5f6f8; --better: #0072b2; --worse: #b84a00; --tie: #5f6770; }
@media (prefers-color-scheme: dark) { :root { --paper: #16191d; --ink: #eceff2; --faint: #a2aab3;
  --line: #30363d; --well: #1f2429; --better: #5fb0e5; --worse: #f08a3c; --tie: #a2aab3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
p, ul, dl { margin: .5rem 0; }
code, pre { font-family: ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace;
  font-size: .9em; }
.name { font-weight: 650; font-family: inherit; font-size: 1em; white-space: nowrap; }
.kicker, figcaption, .cost, .where { color: var(--faint); font-size: .92rem; }
.kicker { margin: 0 0 .3rem; }
.answer { background: var(--well); border-radius: 10px; padding: 1.1rem 1.35rem 1.2rem; }
.answer .where { margin: 0 0 .4rem; }
.answer .found { font-size: 1.16rem; line-height: 1.5; margin: 0 0 .8rem; }
.answer ul { margin: 0; padding-left: 1.15rem; }
.answer li { margin: .25rem 0; }
.step { margin: 1rem 0 1.4rem; }
.step p { margin: .2rem 0; }
pre { background: var(--well); border-radius: 8px; padding: .7rem .9rem; overflow-x: auto;
  margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { padding: .4rem .35rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--faint); vertical-align: bottom; line-height: 1.3;
  white-space: normal; min-width: 2.6rem; }
th.text, td.text { text-align: left; } td.text { white-space: normal; min-width: 4rem; }
tbody th { color: var(--ink); white-space: nowrap; vertical-align: middle; }
th:first-child { position: sticky; left: 0; background: inherit; }
thead tr, tbody tr { background: var(--paper); }
tbody tr.baseline { background: var(--well); }
td.better { color: var(--better); font-weight: 650; } td.worse { color: var(--worse);
  font-weight: 650; } td.tie, td.void, td.few { color: var(--tie); }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
.likes { width: auto; } .likes td { padding: .25rem .7rem .25rem .35rem; }
.likes code { background: var(--well); border-radius: 4px; padding: .05rem .3rem;
  margin-right: .2rem; white-space: pre; display: inline-block; }
figure { margin: 1.5rem 0 2.2rem; } figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; max-width: 46rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; font-size: .92rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.sample { margin: 1.2rem 0 1.8rem; } .sample dd { white-space: pre-wrap; }
.small { font-size: .92rem; } .small li { margin: .3rem 0; }
@media (max-width: 34rem) { main { padding: 1.4rem .9rem 3rem; } h1 { font-size: 1.35rem; }
  .answer { padding: .9rem 1rem; } .answer .found { font-size: 1.05rem; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  figure { overflow-x: auto; } figure img { min-width: 34rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print { body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  figure, .step, table, .answer { break-inside: avoid; } h2 { break-after: avoid; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .3rem .35rem; }
  pre { white-space: pre-wrap; } .answer { border: 1px solid var(--line); } }
"""
