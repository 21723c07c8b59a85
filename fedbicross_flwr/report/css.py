"""The style sheet of the report page: light and dark, narrow and wide, screen and paper.

The surfaces are those of `fedbicross_flwr.report.style`, so that figures sit in the page without an edge.
"""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --surface: #ffffff; --ink: #1b2530; --muted: #5a6673; --line: #e0e4e9;
  --accent: #0067a5; --soft: #eaf3f9; --bar: #b9c2cb; --warn: #8a4b00; --warn-soft: #fff5e6;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0f1419; --surface: #171d24; --ink: #e6eaee; --muted: #9aa6b2; --line: #2c343d;
    --accent: #5cb3e8; --soft: #1b2a37; --bar: #4b5661; --warn: #f3be74; --warn-soft: #2b2416;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 56px 32px 80px; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; font-weight: 650; }
h2 { font-size: 1.3rem; line-height: 1.3; letter-spacing: -.005em; margin: 0 0 8px; font-weight: 650; }
h3 { font-size: 1rem; margin: 32px 0 10px; font-weight: 600; }
p { margin: 0 0 12px; max-width: 44rem; }
.muted, .note { color: var(--muted); }
.note { font-size: .875rem; line-height: 1.5; margin: 14px 0 0; }
.note p { margin: 0 0 4px; max-width: none; }
.kicker { color: var(--accent); font-weight: 600; font-size: .875rem; letter-spacing: .02em;
  margin: 0 0 8px; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }

.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 20px 32px;
  margin: 32px 0 36px; padding: 20px 0; border-top: 1px solid var(--line);
    border-bottom: 1px solid var(--line); }
.facts div { min-width: 0; }
.facts dt { color: var(--muted); font-size: .8125rem; }
.facts dd { margin: 2px 0 0; font-size: 1.125rem; font-weight: 600; overflow-wrap: anywhere; }

section, .card { background: var(--surface); border: 1px solid var(--line); border-radius: 12px; }
section { padding: 32px; margin: 24px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 24px; }
.card { padding: 28px 32px; }
.card h2 { font-size: 1rem; color: var(--muted); font-weight: 600; }
.card .big { font-size: 3rem; line-height: 1.1; font-weight: 650; letter-spacing: -.03em;
  margin: 0 0 18px; }
.card .big small { display: block; font-size: 1rem; line-height: 1.5; font-weight: 400; letter-spacing: 0;
  color: var(--muted); }
.card p.sentence { color: var(--muted); font-size: .9375rem; margin: 20px 0 0; }
.warning { background: var(--warn-soft); color: var(--warn); border-radius: 12px; padding: 16px 24px;
  margin: 0 0 24px; }
.warning p { margin: 0; max-width: none; }

.bars { display: grid; gap: 10px; font-size: .9375rem; font-variant-numeric: tabular-nums; }
.bar { display: grid;
  grid-template: "name track value difference" / 11.5rem minmax(20px, 1fr) 2.6rem 3.2rem;
  gap: 0 10px; align-items: center; }
.bar .name { grid-area: name; } .bar .track { grid-area: track; }
.bar .value { grid-area: value; text-align: right; }
.bar .difference { grid-area: difference; text-align: right; color: var(--muted); }
.bar .track { height: 8px; border-radius: 4px; background: var(--line); overflow: hidden; }
.bar .fill { height: 100%; border-radius: 4px; background: var(--bar); display: block; }
.bar.ours { font-weight: 650; color: var(--accent); }
.bar.ours .fill { background: var(--accent); }
.bars.times { margin-top: 20px; }
.bars.times .bar { grid-template: "name track value" / 15rem minmax(20px, 1fr) 6.5rem; }

.scroll { overflow-x: auto; margin: 0 -8px; padding: 0 8px; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 10px; }
th, td { padding: 9px 10px; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: baseline;
  white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: .8125rem; border-bottom-color: var(--muted); }
thead tr.groups th { border-bottom: 0; padding-bottom: 0; color: var(--ink); font-weight: 600;
  text-align: center; }
tbody th { font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child th, tbody tr:last-child td { border-bottom: 0; }
td.text { text-align: left; white-space: normal; padding-left: 22px; }
.results { min-width: 860px; }
.results tbody th { white-space: normal; min-width: 13rem; }
.results tbody th span { display: block; color: var(--muted); font-weight: 400; font-size: .8125rem;
  line-height: 1.4; }
.results td.start { padding-left: 22px; }
.results td.worst { color: var(--muted); }
tr.ours th { color: var(--accent); font-weight: 650; }
tr.ceiling th, tr.ceiling td { font-style: italic; color: var(--muted); }
td b { color: var(--ink); background: var(--soft); border-radius: 5px; padding: 2px 6px;
  margin: 0 -6px; font-weight: 700; }
tr.failed td, tr.failed th { color: var(--warn); }
.tables > * + * { margin-top: 40px; }

figure { margin: 24px 0 0; }
figure .scroll img { display: block; width: 100%; height: auto; min-width: 620px; }
figcaption { color: var(--muted); font-size: .9375rem; margin-top: 16px; max-width: 46rem; }
.absent { color: var(--muted); font-style: italic; margin: 16px 0 0; }

details { border-top: 1px solid var(--line); padding: 14px 0; }
details:last-child { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 4px; border-radius: 4px; }
details table { margin-top: 12px; }
.pairs td, .pairs th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.pairs th { width: 45%; font-weight: 400; color: var(--muted); }
footer { color: var(--muted); font-size: .875rem; margin-top: 40px; }

@media (max-width: 640px) {
  main { padding: 32px 16px 56px; }
  h1 { font-size: 1.65rem; }
  section, .card { padding: 24px 18px; }
  .facts { grid-template-columns: repeat(3, 1fr); gap: 16px; }
  .results tbody th { min-width: 8.5rem; max-width: 8.5rem; position: sticky; left: 0;
    background: var(--surface); }
  .bar { grid-template: "name value difference" auto "track track track" auto / 1fr max-content 3.2rem;
    gap: 4px 10px; }
  .bars.times .bar { grid-template: "name value" auto "track track" auto / 1fr max-content; }
}
@media print {
  @page { margin: 16mm 14mm; }
  html { font-size: 12px; }
  body { background: #ffffff; font-size: 1rem; line-height: 1.5; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; margin: 28px 0; border-radius: 0; }
  .card { padding: 16px; border-radius: 4px; }
  .scroll { overflow: visible; margin: 0; padding: 0; }
  .results { min-width: 0; }
  table, .results tbody th span { font-size: 8pt; }
  th, td { padding: 4px 5px; }
  .results td.start { padding-left: 10px; }
  figure .scroll img { min-width: 0; }
  .facts { grid-template-columns: repeat(6, auto); gap: 10px 16px; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .card .big { font-size: 2rem; }
  .bar { grid-template-columns: 9rem minmax(10px, 1fr) 2.4rem 2.6rem; }
  figure, tr, .card, .tables > div { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
