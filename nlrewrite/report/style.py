"""How the page looks, and the little it does by itself: filtering and sorting the list of latents.

In: nothing. Out: STYLE and SCRIPT. Invariant: nothing is loaded from anywhere, and without the script everything is
there to be read.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fdfcfa; --card: #f6f4ef; --ink: #1d1f23; --soft: #3f444c; --muted: #6a7079; --rule: #dedad2;
  --blue: #1f5fae; --orange: #b95a14; --grey: #85898f; --purple: #76479f;
  --truth: 31, 95, 174; --said: #c4651b; --link: #1f5fae; --shade: #ece8e0;
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial,
    sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", "Source Serif 4", "Noto Serif", Georgia,
    serif;
  --mono: ui-monospace, "SF Mono", SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #15171b; --card: #1c1f24; --ink: #e8e6e1; --soft: #c4c6c9; --muted: #979ca4; --rule: #343941;
    --blue: #79aef2; --orange: #eb9a57; --grey: #8a9099; --purple: #bf97e6;
    --truth: 92, 150, 226; --said: #eb9a57; --link: #8dbaf5; --shade: #262a31;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--sans); }
main, header, footer, nav > div { max-width: 66rem; margin: 0 auto; padding: 0 1.5rem; }
a { color: var(--link); text-underline-offset: 0.15em; text-decoration-thickness: 0.06em; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 0.5rem; background: var(--page); padding: 0.3rem 0.6rem; z-index: 3; }
h1, h2 { font-family: var(--serif); font-weight: 600; letter-spacing: -0.01em; text-wrap: balance; }
h1 { font-size: clamp(1.9rem, 1.2rem + 2.6vw, 2.9rem); line-height: 1.12; margin: 0.2rem 0 1.1rem; }
h2 { font-size: 1.55rem; line-height: 1.2; margin: 0 0 0.6rem; }
h3 { font-size: 1.02rem; line-height: 1.35; margin: 0 0 0.5rem; }
p { margin: 0 0 0.9rem; max-width: 44rem; }
header { padding-top: 3.2rem; }
.kicker { font-size: 0.85rem; color: var(--muted); margin: 0; letter-spacing: 0.01em; }
.lead { font: 400 1.22rem/1.5 var(--serif); max-width: 44rem; text-wrap: pretty; }
.lead strong { font-weight: 600; color: var(--blue); white-space: nowrap; }
section { padding: 2.6rem 0 0; }
section > p.about { color: var(--soft); }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--rule);
  margin-top: 2rem; }
nav > div { display: flex; gap: 1.4rem; overflow-x: auto; padding-top: 0.55rem; padding-bottom: 0.55rem;
  font-size: 0.9rem; }
nav a { color: var(--soft); text-decoration: none; white-space: nowrap; }
nav a:hover { color: var(--link); text-decoration: underline; }
section[id], details[id] { scroll-margin-top: 3rem; }

.scale { margin: 1.4rem 0 2rem; }
.scale ol { list-style: none; margin: 0; padding: 0; }
.scale li, .scale .ends { display: grid; grid-template-columns: 10rem minmax(0, 1fr) 8.5rem; column-gap: 1rem;
  align-items: center; }
.scale li { min-height: 2.1rem; font-size: 0.95rem; }
.scale .track { position: relative; align-self: stretch; min-height: 1.4rem; }
.scale li .track { background: linear-gradient(var(--rule), var(--rule)) center / 100% 1px no-repeat; }
.scale .track i { position: absolute; top: 50%; }
.scale .zero { top: 0 !important; width: 1px; height: 100%; background: var(--grey); opacity: 0.6; }
.scale .range { height: 5px; margin-top: -2.5px; background: var(--grey); opacity: 0.45; border-radius: 2px; }
.scale .dot { width: 9px; height: 9px; margin: -4.5px 0 0 -4.5px; border-radius: 50%; background: var(--grey); }
.scale .fill { height: 3px; margin-top: -1.5px; background: var(--blue); }
.scale .value { font-variant-numeric: tabular-nums; color: var(--soft); white-space: nowrap; }
.scale .value small { color: var(--muted); font-size: 0.8rem; }
.scale li.ours { font-weight: 650; min-height: 3.1rem; }
.scale li.ours .value { color: var(--blue); font-size: 1.2rem; }
.scale li.ours .value small { font-weight: 400; }
.scale li.ours .dot { width: 4px; height: 26px; margin: -13px 0 0 -2px; border-radius: 1px; background: var(--blue); }
.scale li.ours .range { height: 18px; margin-top: -9px; background: var(--blue); opacity: 0.3; }
.scale .ends { font-size: 0.82rem; color: var(--muted); }
.scale .ends b { position: absolute; bottom: 0.1rem; white-space: nowrap; font-weight: 400; }
.scale .ends .from { transform: translateX(-0.1rem); }
.scale .ends .to { transform: translateX(-100%); }
.scale figcaption { font-size: 0.87rem; color: var(--muted); margin-top: 0.7rem; max-width: 44rem; }

.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0.5rem 3rem; align-items: start; }
.cards { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1px; background: var(--rule);
  border: 1px solid var(--rule); border-radius: 6px; overflow: hidden; margin: 1.2rem 0; }
.cards div { background: var(--page); padding: 0.8rem 1rem; }
.cards dt { font-size: 0.82rem; color: var(--muted); }
.cards dd { margin: 0; font: 600 1.25rem/1.3 var(--serif); font-variant-numeric: tabular-nums; }
.cards dd small { font: 400 0.82rem/1.35 var(--sans); color: var(--muted); display: block; }
ul.notes { margin: 0; padding-left: 1.1rem; max-width: 44rem; }
ul.notes li { margin: 0 0 0.55rem; color: var(--soft); }

.scroll { overflow-x: auto; margin: 1rem 0 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 0.5rem; font-size: 0.95rem; }
caption strong { color: var(--ink); }
th { text-align: left; font-weight: 500; vertical-align: top; }
thead th { color: var(--muted); border-bottom: 1px solid var(--ink); padding: 0.3rem 0.7rem 0.3rem 0;
  vertical-align: bottom; font-size: 0.82rem; }
td, tbody th { padding: 0.36rem 0.7rem 0.36rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; padding-left: 0.7rem; padding-right: 0; }
td small, th small { color: var(--muted); font-weight: 400; display: block; font-size: 0.8rem; }
td.n small { white-space: nowrap; }
tbody th.group { padding-top: 1rem; color: var(--muted); font-size: 0.82rem; border-bottom-color: var(--grey); }
tr.quoted th, tr.quoted td { background: color-mix(in srgb, var(--blue) 9%, transparent); }
tr.quoted th { box-shadow: -0.6rem 0 0 color-mix(in srgb, var(--blue) 9%, transparent); font-weight: 650; }

.statistics th.n, .ladder th.n { white-space: normal; min-width: 4.6rem; }
.statistics tbody th { min-width: 9.5rem; }
.ladder { font-size: 0.82rem; }
.ladder tbody th { min-width: 12.5rem; }
.ladder td.n, .ladder th.n { padding-left: 0.45rem; }
.papers td:last-child { color: var(--soft); }
.papers tbody th { white-space: nowrap; }
#papers .figures { margin-top: 2rem; }
.more { margin: 1rem 0 1.6rem; }
.more > summary { cursor: pointer; color: var(--link); font-size: 0.92rem; }
.protocol { border-left: 3px solid var(--orange); background: var(--card); padding: 0.9rem 1.1rem 0.5rem;
  margin: 1.4rem 0 0; border-radius: 0 6px 6px 0; max-width: 46rem; font-size: 0.94rem; }
.protocol p { margin-bottom: 0.5rem; }
.probe + .probe { margin-top: 2.4rem; }

.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 2.4rem 2.2rem; margin-top: 1.4rem; }
.figures figure { margin: 0; min-width: 0; }
.figures figure.wide { grid-column: 1 / -1; }
.figures figcaption { font-size: 0.87rem; color: var(--muted); line-height: 1.45; max-width: 44rem; }
svg.plot { display: block; width: 100%; height: auto; margin: 0.2rem 0 0.5rem; font-family: var(--sans);
  overflow: visible; }
svg.plot * { stroke-linejoin: round; stroke-linecap: butt; }
svg.plot text { stroke: none; fill: var(--ink); }
.panels { display: grid; gap: 1rem 2.2rem; }
.wide .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }

.tools { display: flex; flex-wrap: wrap; gap: 0.7rem 1.2rem; align-items: center; margin: 1rem 0; font-size: 0.9rem; }
.tools[hidden] { display: none; }
.tools input[type=search], .tools select { font: inherit; color: inherit; background: var(--page);
  border: 1px solid var(--grey);
  border-radius: 5px; padding: 0.3rem 0.55rem; }
.tools input[type=search] { min-width: 15rem; }
.tools output { color: var(--muted); }
.legend { font-size: 0.87rem; color: var(--soft); background: var(--card); border-radius: 6px; padding: 0.75rem 1rem;
  max-width: none; }
.latents { list-style: none; margin: 1rem 0 0; padding: 0; border-top: 1px solid var(--rule); }
.latents > li { border-bottom: 1px solid var(--rule); }
.latents summary { display: grid; grid-template-columns: 4.4rem minmax(0, 1fr) 11rem; gap: 1rem;
  align-items: baseline; padding: 0.7rem 0;
  cursor: pointer; list-style: none; }
.latents summary::-webkit-details-marker { display: none; }
.latents summary:hover .sentence { color: var(--link); }
.latents .id { font-variant-numeric: tabular-nums; color: var(--muted); font-size: 0.88rem; }
.latents .id::before { content: "▸"; display: inline-block; width: 1.1em; color: var(--muted); }
.latents details[open] .id::before { content: "▾"; }
.sentence { font: 400 1.02rem/1.5 var(--serif); overflow-wrap: anywhere; }
.sentence code { font: 0.84em var(--mono); background: var(--shade); border-radius: 3px; padding: 0.05em 0.25em;
  white-space: pre; }
.sentence code.long { white-space: pre-wrap; }
.sentence.none { color: var(--muted); font-style: italic; }
.bits { display: grid; grid-template-columns: repeat(3, 1fr); font-size: 0.82rem; color: var(--muted);
  text-align: right; font-variant-numeric: tabular-nums; }
.bits b { display: block; font-weight: 500; color: var(--ink); font-size: 0.92rem; }
.inside { padding: 0.2rem 0 1.4rem 5.4rem; }
.inside dl { display: flex; flex-wrap: wrap; gap: 0.3rem 1.6rem; margin: 0 0 0.9rem; font-size: 0.86rem; }
.inside dl div { display: flex; gap: 0.4rem; }
.inside dt { color: var(--muted); }
.inside dd { margin: 0; font-variant-numeric: tabular-nums; }
table.examples td { border-bottom: 0; padding-top: 0.28rem; padding-bottom: 0.28rem; }
table.examples td.why { white-space: nowrap; color: var(--muted); }
table.examples { table-layout: auto; }
table.examples td.text { font: 0.8rem/1.75 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere;
  padding: 0.28rem 0; }
table.examples td.before { text-align: right; width: 72%; padding-left: 1.2rem; }
table.examples td.after { width: 28%; padding-left: 1px; }
table.examples th.words { padding-left: 1.2rem; }
.tok { border-radius: 2px; padding: 0.1em 0; background: rgba(var(--truth), var(--a, 0));
  border-bottom: 3px solid transparent; background-clip: padding-box; }
.tok.true { box-shadow: inset 0 0 0 1px rgba(var(--truth), 0.75); }
.tok.said { border-bottom-color: color-mix(in srgb, var(--said) calc(var(--s) * 100%), transparent); }
.tok.target { outline: 2px solid var(--ink); outline-offset: 1px; margin: 0 3px; white-space: pre; }
.key { font: 0.8rem var(--mono); }

footer { padding-top: 3rem; padding-bottom: 4rem; }
footer h2 { margin-top: 2.6rem; scroll-margin-top: 4rem; }
.digests td, .digests th { font-size: 0.82rem; }
.digests code, .packages code { font: 0.95em var(--mono); }
.digests details summary { cursor: pointer; color: var(--link); }
.digests pre { margin: 0.3rem 0; font: 0.76rem/1.45 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere;
  color: var(--soft); }
.packages { overflow-wrap: anywhere; color: var(--soft); font-size: 0.86rem; max-width: none; margin-top: 1rem; }

@media (max-width: 46rem) {
  main, header, footer, nav > div { padding-left: 1rem; padding-right: 1rem; }
  header { padding-top: 1.8rem; }
  .lead { font-size: 1.1rem; }
  .figures { grid-template-columns: minmax(0, 1fr); }
  .wide .panels, .two { grid-template-columns: minmax(0, 1fr); }
  .scale li { grid-template-columns: 1fr auto; padding: 0.2rem 0; }
  .scale li .track { grid-column: 1 / -1; grid-row: 2; height: 1.4rem; }
  .scale .ends { grid-template-columns: minmax(0, 1fr); }
  .scale .ends > span { display: none; }
  #arms table { min-width: 52rem; }
  caption { max-width: calc(100vw - 3rem); }
  #arms tbody th[scope=row] { position: sticky; left: 0; background: var(--page); width: 9.5rem; }
  .latents summary { grid-template-columns: 1fr; gap: 0.25rem; }
  .bits { text-align: left; max-width: 15rem; }
  .inside { padding-left: 0; }
  table.examples, table.examples tbody, table.examples tr, table.examples caption { display: block; }
  table.examples thead { display: none; }
  table.examples tr { padding: 0.5rem 0; border-bottom: 1px dotted var(--rule); }
  table.examples td { display: inline; padding: 0 0.9rem 0 0; }
  table.examples td.n::before { content: attr(data-name) " "; color: var(--muted); }
  table.examples td.text { padding: 0; }
  table.examples td.before::before { content: "\\A"; }
}
@media print {
  :root { color-scheme: light; --page: #fff; }
  body { font-size: 10.5pt; }
  nav, .tools, .skip { display: none !important; }
  section, figure, table.examples tr, .latents > li { break-inside: avoid; }
  #latents, #arms { break-inside: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT = """
"use strict";
(() => {
  const tools = document.querySelector(".tools");
  const list = document.querySelector(".latents");
  if (!tools || !list) return;
  const items = Array.from(list.children);
  const find = tools.querySelector("input[type=search]");
  const order = tools.querySelector("select");
  const none = tools.querySelector("input[type=checkbox]");
  const told = tools.querySelector("output");
  const number = (item, name) => Number(item.dataset[name]);
  const show = () => {
    const wanted = find.value.trim().toLowerCase();
    let shown = 0;
    for (const item of items) {
      const words = item.querySelector("summary").textContent.toLowerCase();
      const fits = words.includes(wanted) && !(none.checked && item.dataset.outcome !== "ok");
      item.hidden = !fits;
      shown += fits;
    }
    told.textContent = shown + " of " + items.length + " latents";
  };
  const sort = () => {
    const [name, direction] = order.value.split(" ");
    const sign = direction === "up" ? 1 : -1;
    const value = (item) => item.dataset[name] === "" ? Infinity : sign * number(item, name);
    items.sort((a, b) => value(a) - value(b) || number(a, "latent") - number(b, "latent"));
    list.append(...items);
  };
  find.addEventListener("input", show);
  none.addEventListener("change", show);
  order.addEventListener("change", sort);
  tools.hidden = false;
  show();
})();
"""
