"use strict";
const PERIOD_MS = 1000, SPAN_S = 900, BRIDGE = 6; // a line bridges so many steps in which nothing was measured
const SMALL = 64; // more slots than this are squares without a name
const SHAPES = new Set(["svg", "g", "path", "line", "text"]);
const $ = id => document.getElementById(id);
const places = new Map(); // engine → which row is drawn in which place
let chosen = null, pointed = null, last = null, answered = null;

// ---- elements and words -----------------------------------------------------------------------------------------

// Text stays text, whoever wrote it: nothing here reads HTML.
function make(tag, attributes = {}, ...children) {
  const made = SHAPES.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  made.append(...children.flat().filter(each => each !== null && each !== undefined));
  return made;
}

// Puts new children there only if what they show has changed: focus, selection and a reader's place stay.
function put(place, shown, children) {
  const key = JSON.stringify(shown);
  if (place.shown === key) return;
  place.shown = key;
  place.replaceChildren(...children());
}

const number = (value, digits = 0) => value === null || value === undefined ? "–" :
  Number(value).toLocaleString("en", {maximumFractionDigits: digits, minimumFractionDigits: digits});
const percent = value => value === null || value === undefined ? "–" : `${number(100 * value)} %`;
const dollars = value => `$${number(value, 2)}`;
const sum = values => values.reduce((total, each) => total + each, 0);
const name = text => make("span", {class: "name"}, text);
const key = (kind, ...text) => make("span", {class: `key ${kind}`}, ...text);

function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (!value) return "0 ms";
  return value < 1000 ? `${number(value, value < 10 ? 1 : 0)} ms` : `${number(value / 1000, value < 1e4 ? 1 : 0)} s`;
}

function age(seconds) {
  return seconds < 10 ? `${number(seconds, 1)} s` : duration(seconds);
}

// As in wording.py.
function duration(seconds) {
  for (const [size, unit, part, smaller] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (seconds < size - part / 2) continue;
    const parts = Math.round(seconds / part), rest = parts % (size / part);
    return `${(parts - rest) * part / size} ${unit}${rest ? ` ${rest} ${smaller}` : ""}`;
  }
  return seconds < 0.5 ? "under 1 s" : `${Math.round(seconds)} s`;
}

function clock(at, seconds = true) {
  return new Date(at * 1000).toLocaleTimeString("en-GB", seconds ? {} : {hour: "2-digit", minute: "2-digit"});
}

// A time of today is a clock time; another one says its day.
function when(at) {
  const day = each => new Date(each * 1000).toDateString();
  return (day(at) === day(last.at) ? "" : `${day(at).slice(0, 10)} `) + clock(at, false);
}

// `names` stand between backticks in a sentence.
function sentence(text) {
  return text.split("`").map((part, at) => at % 2 ? make("code", {}, part) : part);
}

function table(caption, head, rows) {
  const cell = (text, at) => make(at ? "td" : "th", at ? {} : {scope: "row"}, text);
  return make("table", {}, make("caption", {class: "unseen"}, caption),
    make("thead", {}, make("tr", {}, head.map(each => make("th", {scope: "col"}, each)))),
    make("tbody", {}, rows.map(row => make("tr", {}, row.map(cell)))));
}

// ---- the top ------------------------------------------------------------------------------------------------------

function headline(level, text) {
  const shown = $("headline");
  text = text.replace(/(\d) (?=(ms|s|min|h|d|of)\b)/g, "$1\u00a0");
  if (shown.textContent !== text) shown.textContent = text;
  shown.className = level;
  document.title = `${level === "ok" ? "" : "● "}${text.split(":")[0]} · sidecar`;
}

// The first banner's title is the headline already.
function banners(found, above) {
  put($("banners"), found, () => found.map(each => {
    const lines = [["Why", each.text], ["Callers", each.callers], ["To do", each.act]].filter(line => line[1]);
    return make("div", {class: `banner ${each.level}`}, above === `${each.title}.` ? null : make("b", {}, each.title),
      make("dl", {}, lines.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, sentence(text))])));
  }));
}

function latest(values, back = 12) {
  for (let at = values.length - 1; at >= Math.max(0, values.length - back); at--)
    if (values[at] !== null) return values[at];
  return null;
}

function tiles(status) {
  const {history, recent, objective} = status, engines = Object.values(status.engines);
  const waiting = lane => sum(status.lanes.filter(each => each.lane === lane).map(each => each.waiting));
  const found = [
    ["First token p95", milliseconds(recent.ttft_p95_ms), `objective ${milliseconds(objective.ttft_ms)}`, recent.ttft_p95_ms > objective.ttft_ms],
    ["Token gap p95", milliseconds(latest(history.gap_p95_ms)), `p50 ${milliseconds(latest(history.gap_p50_ms))}`],
    ["Online", number(latest(history.online_tokens_per_s)), "tokens per second"],
    ["Offline", number(latest(history.offline_tokens_per_s)), "tokens per second"],
    ["Slots in use", number(sum(engines.map(each => each.slots_busy))), `of ${number(sum(engines.map(each => each.slots)))}`],
    ["Online waiting", number(waiting("online")), `${number(waiting("offline"))} offline here`],
  ];
  if (status.usd_per_hour) found.push(["Rent", dollars(sum(Object.values(status.usd_per_hour))), "per hour"]);
  put($("tiles"), found, () => found.map(([title, value, unit, over]) =>
    make("div", {class: over ? "tile over" : "tile"}, make("span", {}, title), make("b", {}, value), make("span", {}, unit))));
}

// ---- slots --------------------------------------------------------------------------------------------------------

// A row keeps its place while it runs: online from the front, offline from the back.
function placed(engine, rows) {
  const held = (places.get(engine.name) || Array(engine.slots).fill(null)).slice(0, engine.slots);
  while (held.length < engine.slots) held.push(null);
  const alive = new Map(rows.map(each => [each.row, each]));
  held.forEach((row, at) => { if (!alive.has(row)) held[at] = null; });
  for (const each of rows) {
    let missing = each.slots - held.filter(row => row === each.row).length;
    while (missing-- > 0) {
      const free = each.lane === "online" ? held.indexOf(null) : held.lastIndexOf(null);
      if (free >= 0) held[free] = each.row;
    }
  }
  places.set(engine.name, held);
  let unseen = engine.slots_draining - sum(rows.filter(each => each.draining).map(each => each.slots));
  return held.map(row => alive.get(row) || (unseen-- > 0 ? {draining: true} : null));
}

const kindOf = row => !row ? "free" : row.draining ? "draining" : row.lane;

function told(row, at) {
  if (!row) return `Slot ${at + 1} is free.`;
  if (!row.lane) return `Slot ${at + 1} drains: its stream broke, and the engine may still run it.`;
  const what = {online: "online", backfill: "offline, backfill", resume: "offline, resumed", reserved: "offline, reserved"}[row.kind];
  return `Slot ${at + 1}: ${row.tenant}${row.job ? `, job ${row.job}` : ""}, ${what}${row.draining ? ", told to stop" : ""}, ` +
    `for ${age(row.age_s)}, ${number(row.tokens)} tokens.`;
}

function usage(engine) {
  const others = engine.foreign_slots ? `${number(engine.foreign_slots)} more are used by others.` : "";
  const held = engine.up && engine.held ? `Offline gets no more because ${engine.held}.` : "";
  return [["online", engine.slots_online], ["offline", engine.slots_offline], ["draining", engine.slots_draining],
    ["free", engine.slots_free]].filter(each => each[1]).map(([kind, count]) => key(`is-${kind}`, `${number(count)} ${kind}`))
    .concat([others, held].filter(Boolean).map(each => make("span", {}, each)));
}

function engineSection(engine) {
  const strip = make("ol", {class: engine.slots > SMALL ? "slots small" : "slots", tabindex: 0,
    "aria-label": `Slots of engine ${engine.name}; arrow keys tell one slot after the other`});
  const under = make("p", {class: "under", "aria-live": "polite"});
  const choose = at => { chosen = at === null ? null : [engine.name, at]; if (last) engines(last); };
  strip.addEventListener("pointermove", event => {
    const cell = event.target.closest("li");
    choose(cell ? [...strip.children].indexOf(cell) : null);
  });
  for (const leave of ["pointerleave", "blur"]) strip.addEventListener(leave, () => choose(null));
  strip.addEventListener("keydown", event => {
    const move = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (event.key === "Escape") choose(null);
    if (!move) return;
    event.preventDefault();
    const count = strip.children.length, at = chosen && chosen[0] === engine.name ? chosen[1] : move > 0 ? -1 : 0;
    choose((at + move + count) % count);
  });
  const made = make("div", {class: "engine"}, make("h2"), strip, under);
  return Object.assign(made, {strip, under});
}

function engines(status) {
  const found = Object.entries(status.engines);
  put($("engines"), found.map(([label, each]) => [label, each.slots]), () => found.map(([, each]) => engineSection(each)));
  found.forEach(([label, engine], number_) => {
    const section = $("engines").children[number_], cells = placed(engine, engine.rows);
    put(section.firstChild, [label, engine.model, engine.up], () =>
      ["Slots of ", name(label), make("small", {}, engine.model, engine.up ? "" : ", down")]);
    while (section.strip.children.length < cells.length) section.strip.append(make("li", {}, make("b"), make("i")));
    cells.forEach((row, at) => {
      const cell = section.strip.children[at], [who, since] = cell.children;
      const picked = chosen !== null && chosen[0] === engine.name && chosen[1] === at;
      cell.className = kindOf(row) + (picked ? " chosen" : "");
      who.textContent = engine.slots > SMALL ? "" : row ? row.tenant || "draining" : "";
      since.textContent = engine.slots > SMALL || !row || !row.lane ? "" : age(row.age_s);
      cell.setAttribute("aria-label", told(row, at));
    });
    const at = chosen && chosen[0] === engine.name ? chosen[1] : cells.length;
    const under = at < cells.length ? [make("span", {}, told(cells[at], at))] : usage(engine);
    put(section.under, under.map(each => each.textContent), () => under);
  });
}

// ---- charts -------------------------------------------------------------------------------------------------------

const CHARTS = [
  {title: "First token of online answers", unit: milliseconds, limit: status => status.objective.ttft_ms,
    lines: [["ttft_p95_ms", "p95", "is-online"], ["ttft_p50_ms", "p50", "is-typical"]]},
  {title: "Gap between tokens", unit: milliseconds,
    lines: [["gap_p95_ms", "p95", "is-online"], ["gap_p50_ms", "p50", "is-typical"]]},
  {title: "Output tokens per second", unit: value => number(value), areas: true,
    lines: [["online_tokens_per_s", "online", "is-online"], ["offline_tokens_per_s", "offline", "is-offline"]]},
  {title: "Slots in use", unit: value => number(value, value % 1 ? 1 : 0), areas: true, whole: status =>
    sum(Object.values(status.engines).map(each => each.slots)),
    lines: [["online_slots", "online", "is-online"], ["offline_slots", "offline", "is-offline"]]},
];

function chartSection(chart) {
  const legend = chart.lines.map(([, label, kind]) => key(`${kind}${chart.areas ? "" : " thin"}`, `${label} `, make("output")));
  if (chart.limit) legend.push(key("is-limit rule", "objective ", make("output")));
  const moment = make("span"), svg = make("svg", {role: "img", tabindex: 0});
  const point = at => { pointed = at; if (last) charts(last); };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), {step_s: step, tokens: _, ttft_p95_ms: {length}} = last.history;
    const at = length - 1 - Math.round((box.right - 6 - event.clientX) / (box.width - 52) * SPAN_S / step);
    point(at >= 0 && at < length ? at : null);
  });
  for (const leave of ["pointerleave", "blur"]) svg.addEventListener(leave, () => point(null));
  svg.addEventListener("keydown", event => {
    const move = {ArrowRight: 1, ArrowLeft: -1}[event.key], {length} = last.history.ttft_p95_ms;
    if (event.key === "Escape") point(null);
    if (!move) return;
    event.preventDefault();
    point(Math.min(length - 1, Math.max(0, (pointed === null ? length - 1 : pointed) + move)));
  });
  const made = make("figure", {class: "chart"}, make("figcaption", {}, make("strong", {}, chart.title, moment), legend), svg);
  return Object.assign(made, {svg, moment, outputs: [...made.querySelectorAll("output")]});
}

function ticks(top) {
  const power = 10 ** Math.floor(Math.log10(top / 4)), step = [1, 2, 5, 10].map(each => each * power).find(each => top / each <= 4.5);
  return Array.from({length: Math.floor(top / step + 1e-9) + 1}, (_, at) => at * step);
}

// A path over what is known; a short gap is bridged, a long one is left open.
function line(values, x, y) {
  let path = "", before = -Infinity;
  values.forEach((value, at) => {
    if (value === null) return;
    path += `${at - before > BRIDGE ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}${at - before > BRIDGE ? "h0" : ""}`;
    before = at;
  });
  return path;
}

function draw(chart, figure, status) {
  const {svg, outputs, moment} = figure, {history} = status, length = history.ttft_p95_ms.length;
  const width = Math.max(svg.clientWidth, 240), height = svg.clientHeight || 152, [left, right, foot] = [46, width - 6, height - 20];
  const end = status.at - history.age_s, time = at => end - (length - 1 - at) * history.step_s;
  const x = at => right - (status.at - Math.min(time(at), status.at)) / SPAN_S * (right - left);
  const series = chart.lines.map(([field]) => history[field]);
  const stacked = chart.areas ? series.map((_, depth) => series[0].map((__, at) => sum(series.slice(0, depth + 1).map(each => each[at])))) : series;
  const limit = chart.limit && chart.limit(status);
  const known = stacked.flat().filter(each => each !== null), some = known.some(each => each > 0);
  const top = Math.max(1e-3, ...known, limit || 0, chart.whole ? chart.whole(status) : 0) * 1.06;
  const y = value => foot - value / top * (foot - 8);
  const shapes = (some || limit || chart.whole ? ticks(top) : [0]).flatMap(value => [make("line", {class: value ? "grid" : "axis", x1: left, x2: right, y1: y(value), y2: y(value)}),
    make("text", {x: left - 7, y: y(value) + 4, "text-anchor": "end"}, chart.unit(value))]);
  for (let at = Math.ceil((status.at - SPAN_S) / 300) * 300; at <= status.at; at += 300) {
    const tick = right - (status.at - at) / SPAN_S * (right - left);
    shapes.push(make("text", {x: tick, y: height - 4, "text-anchor": tick > right - 18 ? "end" : tick < left + 18 ? "start" : "middle"}, clock(at, false)));
  }
  stacked.forEach((values, depth) => {
    const kind = chart.lines[depth][2], path = line(values, x, y);
    if (!chart.areas) return shapes.push(make("path", {class: kind, d: path}));
    const under = depth ? stacked[depth - 1] : values.map(() => 0);
    const back = [...under.keys()].reverse().map(at => `L${x(at).toFixed(1)} ${y(under[at]).toFixed(1)}`).join("");
    shapes.push(make("path", {class: `${kind} area`, d: path && `${path}${back}Z`}));
  });
  if (!some) shapes.push(make("text", {x: (left + right) / 2, y: foot / 2 + 10, "text-anchor": "middle"}, "nothing in this time"));
  if (limit) shapes.push(make("line", {class: "is-limit", x1: left, x2: right, y1: y(limit), y2: y(limit)}));
  if (pointed !== null && pointed < length) shapes.push(make("line", {class: "at", x1: x(pointed), x2: x(pointed), y1: 8, y2: foot}));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...shapes);
  const shown = series.map(values => pointed === null ? latest(values) : values[pointed]);
  [...shown, ...(limit ? [limit] : [])].forEach((value, at) => { outputs[at].textContent = chart.unit(value); });
  moment.textContent = pointed === null ? "" : clock(time(pointed));
  const peak = values => Math.max(...values.filter(each => each !== null), 0);
  svg.setAttribute("aria-label", `${chart.title}, arrow keys go through time: ` + chart.lines.map(([, label], at) =>
    `${label} ${chart.unit(shown[at])}, at most ${chart.unit(peak(series[at]))}`).join("; ") + (limit ? `; objective ${chart.unit(limit)}` : ""));
}

function charts(status) {
  if (!$("charts").children.length) $("charts").append(...CHARTS.map(chartSection));
  CHARTS.forEach((chart, at) => draw(chart, $("charts").children[at], status));
}

// ---- lists --------------------------------------------------------------------------------------------------------

// Shows a part of the page, or leaves it out where there is nothing to show.
function part(place, shown, children) {
  const section = $(place).closest("[data-part]"), some = Array.isArray(shown) ? shown.length > 0 : Boolean(shown);
  section.hidden = !some;
  if (some) put($(place), shown, children);
}

const VERDICTS = {"on time": ["ok", "in time"], "at risk": ["warn", "at risk"], infeasible: ["bad", "too late"]};

function job(each) {
  const [level, text] = VERDICTS[each.verdict] || ["", each.deadline_in_s === null ? "no deadline" : "not known yet"];
  const who = each.job ? [name(each.job), make("small", {}, name(each.tenant))] :
    each.tenant ? ["without a job", make("small", {}, name(each.tenant))] : ["further jobs, too many to tell apart"];
  const due = each.deadline_in_s === null ? "–" : when(last.at + each.deadline_in_s);
  const end = each.eta_p50_s === null ? "–" : make("span", {}, when(last.at + each.eta_p50_s),
    each.eta_p90_s === null ? null : make("small", {}, `by ${when(last.at + each.eta_p90_s)}`));
  return [make("span", {}, who), number(each.done), number(each.failed), number(each.items), due, end, make("span", {class: `pill ${level}`}, text)];
}

function jobs(found) {
  const shown = found.filter(each => each.job || each.deadline_in_s !== null || !each.tenant)
    .sort((a, b) => (a.deadline_in_s ?? Infinity) - (b.deadline_in_s ?? Infinity));
  const minutes = shown.map(each => [each.job, each.tenant, each.done, each.failed, each.items, each.verdict,
    each.deadline_in_s !== null && when(last.at + each.deadline_in_s), each.eta_p50_s !== null && when(last.at + each.eta_p50_s)]);
  part("jobs", minutes, () => [table("Jobs", ["Job", "Done", "Failed", "Left here", "Due", "Done at", ""], shown.map(job))]);
}

function bar(kind, width, mark) {
  const made = make("span", {class: `bar ${kind}`}, make("i"), mark === undefined ? null : make("b"));
  made.firstChild.style.width = `${100 * (width || 0)}%`;
  if (mark !== undefined) made.lastChild.style.left = `${100 * mark}%`;
  return made;
}

function tenants(found) {
  part("tenants", found, () => found.map(each => make("div", {class: "share"},
    make("span", {}, key(`is-${each.lane}`, name(each.tenant)), make("span", {class: "unseen"}, ` (${each.lane})`)),
    bar(`is-${each.lane}`, each.share, each.due), make("span", {}, percent(each.share)),
    make("span", {class: "quiet"}, make("span", {class: "unseen"}, `by weight ${percent(each.due)}, `), each.waiting ? `${number(each.waiting)} wait` : each.slots ? `${number(each.slots)} run` : "–"))));
}

function decisions(found) {
  part("decisions", found, () => [...found].reverse().map(each =>
    make("li", {}, make("time", {}, clock(each.at)), make("span", {}, sentence(each.text)))));
}

function money(usd) {
  const names = usd ? Object.keys(usd) : [], total = sum(Object.values(usd || {}));
  part("money", usd, () => {
    const wide = names.filter(each => usd[each] > total / 500);
    const stack = make("div", {class: "stack", "aria-hidden": "true"}, wide.map(each => make("i", {class: `is-${each}`})));
    wide.forEach((each, at) => { stack.children[at].style.width = `${100 * usd[each] / total}%`; });
    return [stack, make("p", {class: "sum"}, names.map(each => make("span", {}, key(`is-${each}`, `${each} `), dollars(usd[each]))))];
  });
}

function dead(offline, letters) {
  const counts = offline && offline.stats ? offline.stats.items.filter(each => each.outcome !== "done") : [];
  part("dead", counts.length ? [counts, letters] : [], () => [
    make("p", {class: "sum"}, counts.map(each => make("span", {}, `${each.reason.replaceAll("_", " ")} `, make("b", {}, number(each.count))))),
    make("ol", {class: "log"}, letters.map(each => make("li", {}, make("time", {}, clock(each.at)),
      make("span", {}, `${each.reason.replaceAll("_", " ")}: `, make("code", {}, each.source), each.job ? [" of ", name(each.job)] : ""))))]);
}

function kafka(offline) {
  const partitions = offline && offline.partitions || [];
  $("kafka-title").replaceChildren("Items from ", name(offline ? offline.topic || "Kafka" : "Kafka"),
    make("small", {}, offline ? offline.state : ""));
  part("kafka", partitions, () => [table("Partitions", ["Partition", "Watermark", "Gaps", "Lag", "In flight", "Not committed", ""],
    partitions.map(each => [String(each.partition), number(each.watermark), number(each.gaps), number(each.lag), number(each.in_flight),
      number(each.finished), each.state === "running" ? "" : make("span", {class: "pill warn"}, each.state)]))]);
}

function counters(found) {
  const rows = Object.entries(found).flatMap(([label, each]) => [
    [name(`${label}: dispatches`), Object.entries(each.dispatches).map(([kind, count]) => `${number(count)} ${kind}`).join(", ")],
    ["contended", `${number(each.contended)}, of these offline's ${number(each.offline_of_contended)}`],
    ["reserved dispatches", `${number(each.reserved_due)} due, ${number(each.reserved_taken)} taken, ${number(each.reserved_lapsed)} lapsed`],
    ["worst window", `${percent(each.worst_window_share)}, ${number(each.window_violations)} violations`],
    ["stopped for online", `${number(each.preemptions)}; a slot is free after ${milliseconds(each.stop_to_free_ms)}`]]);
  put($("counters"), rows.map(row => row[1]), () => [table("Counters", ["", ""], rows)]);
}

// ---- once a second ------------------------------------------------------------------------------------------------

function show(status) {
  last = status;
  document.body.classList.remove("stale");
  $("version").textContent = `${status.version}, up for ${duration(status.up_s)}`;
  $("clock").textContent = clock(status.at);
  headline(status.verdict.level, status.verdict.text);
  banners(status.verdict.banners, status.verdict.text);
  $("main").hidden = false;
  tiles(status);
  engines(status);
  charts(status);
  jobs(status.jobs);
  tenants(status.tenants);
  decisions(status.decisions);
  money(status.usd_per_hour);
  dead(status.offline, status.last_dead_letters || []);
  kafka(status.offline);
  counters(status.engines);
}

async function turn() {
  try {
    const answer = await fetch("status.json", {signal: AbortSignal.timeout(5000)});
    show(await answer.json());
    answered = last.at;
  } catch (error) {
    document.body.classList.add("stale");
    headline("bad", `The sidecar does not answer${answered ? `; what is below is from ${clock(answered)}` : ""}.`);
    banners([]);
  }
  setTimeout(turn, PERIOD_MS);
}

window.addEventListener("resize", () => { if (last) charts(last); });
turn();
