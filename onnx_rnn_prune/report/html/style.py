"""How the page looks: one column, two sets of colours, numbers under one another."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --raised: #f6f7f9; --ink: #1b222c; --soft: #596474; --line: #dfe3e8;
  --accent: #1f6fb5; --pale: #b9c3cf; --good: #23774a; --bad: #b3261e; --caution: #8a5a00;
  --caution-page: #fdf6e7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #13171c; --raised: #1b2027; --ink: #e3e8ee; --soft: #9aa6b5; --line: #2d343d;
    --accent: #6cb0ee; --pale: #505c6a; --good: #6cc795; --bad: #f2938c; --caution: #e4bd6c;
    --caution-page: #26210f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1, h2, h3 { line-height: 1.25; font-weight: 600; text-wrap: balance; }
h1 { margin: 0 0 .9rem; font-size: 1.7rem; letter-spacing: -.01em; }
h2 { margin: 0 0 .6rem; font-size: 1.15rem; }
h3 { margin: 1.6rem 0 .4rem; font-size: .95rem; }
p { margin: 0 0 .7rem; max-width: 46rem; }
section { margin-top: 3rem; }
.kicker, .note, figcaption, dt, .tile .label, .tile .detail { color: var(--soft); }
.kicker { margin: 0 0 .3rem; font-size: .87rem; }
.lead { font-size: 1.1rem; line-height: 1.5; }
.note { font-size: .9rem; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.tiles {
  display: flex; flex-wrap: wrap; gap: 1px;
  margin-top: 1.6rem; background: var(--line); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden;
}
.tile { flex: 1 1 9.6rem; background: var(--page); padding: .85rem 1rem .9rem; }
.tile .label, .tile .detail { font-size: .84rem; line-height: 1.4; }
.tile .detail { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3;
  overflow: hidden; }
.tile .value { font-size: 1.4rem; font-weight: 600; line-height: 1.35; white-space: nowrap; }
.warnings { margin: 1.6rem 0 0; padding: .8rem 1rem; list-style: none; border-radius: 8px;
  background: var(--caution-page); }
.warnings li + li { margin-top: .5rem; }
.warnings b { color: var(--caution); font-weight: 600; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .9rem; min-width: 100%; }
th { font-weight: 500; color: var(--soft); text-align: left; vertical-align: bottom;
  border-bottom: 1px solid var(--pale); }
th, td { padding: .42rem .7rem; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td { vertical-align: top; border-bottom: 1px solid var(--line); }
th.number, td.number { text-align: right; white-space: nowrap; }
td.name div { width: max-content; max-width: 18rem; }
td.words, th { overflow-wrap: normal; }
td.long { min-width: 17rem; }
.share { display: inline-block; width: 4.5rem; height: .45rem; margin-right: .6rem;
  background: var(--line); border-radius: 2px; overflow: hidden; }
.share span { display: block; height: 100%; background: var(--accent); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr);
  gap: .45rem 1.5rem; margin: 0; }
dd { margin: 0; max-width: 46rem; }
pre { margin: 0; padding: .8rem 1rem; background: var(--raised); border-radius: 8px;
  white-space: pre-wrap;
  font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  gap: 1.4rem 2.5rem; align-items: start; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr));
  gap: 1.4rem 1.6rem; }
figure { margin: 1rem 0 0; max-width: 30rem; }
figure.wide { max-width: 38rem; }
figure + .scroll { margin-top: 1.4rem; }
figcaption { font-size: .86rem; margin-top: .3rem; }
[data-format]:not([data-format=text]) { white-space: nowrap; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 11px; fill: var(--ink); }
svg .axis, svg .tick { fill: var(--soft); }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); }
svg .base { stroke: var(--pale); }
svg .bar { fill: var(--accent); }
svg rect { shape-rendering: crispEdges; }
.whole { white-space: nowrap; }
svg .before { fill: var(--pale); }
svg .spread { stroke: var(--ink); stroke-width: 1.5; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
svg .reference { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .point { fill: var(--accent); }
svg .other { fill: var(--pale); }
svg .misses { fill: var(--page); stroke: var(--pale); stroke-width: 1.5; }
svg .chosen { fill: none; stroke: var(--ink); stroke-width: 1.8; }
svg .strong { font-weight: 600; paint-order: stroke; stroke: var(--page); stroke-width: 4px; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  td.name div { max-width: 11rem; }
  table { font-size: .86rem; }
  th, td { padding-left: .4rem; padding-right: .4rem; }
  section { margin-top: 2.4rem; }
  .lead { font-size: 1.03rem; }
  .tile .value { font-size: 1.2rem; white-space: normal; }
  dl:not(.short) { grid-template-columns: minmax(0, 1fr); gap: .1rem; }
  dl:not(.short) dd { margin-bottom: .8rem; }
}
@media print { body { font-size: 11px; } section { break-inside: avoid; } }
"""
