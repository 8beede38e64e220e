// Charts of loss and round-trip time, and the small ones in rows. A point is
// [unix time, sent, lost, rtt min, rtt mean, rtt p99, rtt max], times in microseconds, null if there was none.

import { clock, draw, make, micros, percent } from "./words.js";

const WIDTH = 440;
const HEIGHT = 150;
const LEFT = 52;
const BOTTOM = 18;
const LOSS = 26;
const COLUMNS = 380;

/** The line of a small chart of some numbers, as the `d` of a path in a box of 60 x 16; empty if there are fewer than two. */
export function sparkline(values) {
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return "";
  const most = Math.max(...known);
  // A noise of a few percent is not to look like a storm.
  const least = Math.min(Math.min(...known), most * 0.6);
  const span = most - least || 1;
  let path = "";
  let is_down = false;
  values.forEach((value, at) => {
    if (value === null) {
      is_down = false;
      return;
    }
    const x = (60 - (values.length - 1 - at) * 1.5).toFixed(1);
    const y = (15 - ((value - least) / span) * 13).toFixed(1);
    path += `${is_down ? "L" : "M"}${x} ${y}`;
    is_down = true;
  });
  return path;
}

/** A round number not below another one: 1, 2 or 5 times a power of ten. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((times) => times * power).find((candidate) => candidate >= value);
}

/** A step between the marks of a time axis, in seconds, so that about four fit. */
function stepOf(span) {
  const steps = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 2592000];
  return steps.find((step) => span / step <= 5) ?? steps.at(-1);
}

/** A chart of points between two times: round-trip times above, loss below. */
export function chart(points, from, to, title) {
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img" });
  const width = WIDTH - LEFT - 6;
  const height = HEIGHT - BOTTOM - LOSS - 8;
  const top = 6;
  const span = Math.max(to - from, 1);
  const x = (time) => LEFT + ((time - from) / span) * width;
  const seen = thin(points.filter(([time]) => time >= from && time <= to), from, span);
  const highest = seen.reduce((most, point) => Math.max(most, point[5] ?? point[4] ?? 0, point[4] ?? 0), 0);
  const most = round((highest || 100) * 1.1);
  const y = (us) => top + height - (Math.min(us, most) / most) * height;
  const sum = (at) => seen.reduce((total, point) => total + (point[at] ?? 0), 0);
  const [sent, lost] = [sum(1), sum(2)];
  const label = seen.length === 0
    ? `${title}: no figures`
    : `${title}: loss ${percent(sent ? lost / sent : null)}, round-trip time at most ${micros(highest || null)}`;
  svg.setAttribute("aria-label", label);
  for (const part of [0, 0.5, 1]) {
    const at = y(most * part);
    svg.append(draw("line", { x1: LEFT, x2: WIDTH - 6, y1: at, y2: at, class: "grid" }));
    const text = draw("text", { x: LEFT - 6, y: at + 3.5, class: "mark end" });
    text.textContent = part === 0 ? "0" : micros(most * part);
    svg.append(text);
  }
  const step = stepOf(span);
  const offset = new Date(from * 1000).getTimezoneOffset() * 60;
  for (let time = Math.ceil((from - offset) / step) * step + offset; time <= to; time += step) {
    svg.append(draw("line", { x1: x(time), x2: x(time), y1: top, y2: HEIGHT - BOTTOM, class: "grid" }));
    const text = draw("text", { x: Math.min(Math.max(x(time), LEFT + 14), WIDTH - 24), y: HEIGHT - 5, class: "mark middle" });
    text.textContent = timeMark(time, step);
    svg.append(text);
  }
  // Where points are further apart than this, nothing is known between them.
  const gaps = seen.slice(1).map((point, at) => point[0] - seen[at][0]).sort((a, b) => a - b);
  const gap = (gaps[gaps.length >> 1] ?? 1) * 3.5;
  svg.append(draw("path", { d: band(seen, gap, x, y), class: "band" }));
  svg.append(draw("path", { d: line(seen, 5, gap, x, y), class: "line tail" }));
  svg.append(draw("path", { d: line(seen, 4, gap, x, y), class: "line" }));
  const base = HEIGHT - BOTTOM;
  svg.append(draw("line", { x1: LEFT, x2: WIDTH - 6, y1: base, y2: base, class: "grid" }));
  const name = draw("text", { x: LEFT - 6, y: base - 6, class: "mark end" });
  name.textContent = "loss";
  svg.append(name);
  const bar = Math.max(1, Math.min(6, (width / Math.max(seen.length, 1)) * 0.8));
  let bars = "";
  for (const [time, sent, lost] of seen) {
    if (!lost) continue;
    const part = Math.min(1, lost / Math.max(sent, lost));
    bars += `M${x(time).toFixed(1)} ${base}V${(base - Math.max(3, part * LOSS)).toFixed(1)}`;
  }
  svg.append(draw("path", { d: bars, class: "loss", "stroke-width": bar.toFixed(1) }));
  return make("figure", {}, svg, make("figcaption", { class: "quiet", text: label }));
}

/** At most so many points as there are columns: points of one column become one. */
function thin(points, from, span) {
  if (points.length <= COLUMNS) return points;
  const columns = new Map();
  for (const point of points) {
    const column = Math.floor(((point[0] - from) / span) * COLUMNS);
    const before = columns.get(column);
    columns.set(column, before === undefined ? point : merged(before, point));
  }
  return [...columns.values()];
}

function merged(a, b) {
  const known = (choose, at) => {
    if (a[at] === null || b[at] === null) return a[at] ?? b[at];
    return choose(a[at], b[at]);
  };
  const replies = (point) => Math.max(point[1] - point[2], 0);
  const weight = replies(a) + replies(b) > 0 ? replies(a) / (replies(a) + replies(b)) : 0.5;
  return [
    a[0], a[1] + b[1], a[2] + b[2], known(Math.min, 3), known((x, y) => x * weight + y * (1 - weight), 4), known(Math.max, 5),
    known(Math.max, 6),
  ];
}

function timeMark(time, step) {
  if (step >= 86400) {
    return new Date(time * 1000).toLocaleDateString(undefined, { month: "short", day: "numeric" });
  }
  const text = clock(time * 1000).split(" ").at(-1);
  return step >= 60 ? text.slice(0, 5) : text;
}

function line(points, at, gap, x, y) {
  let path = "";
  let before = null;
  for (const point of points) {
    const value = point[at];
    if (value === null || value === undefined) {
      before = null;
      continue;
    }
    const is_near = before !== null && point[0] - before <= gap;
    path += `${is_near ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(value).toFixed(1)}`;
    before = point[0];
  }
  return path;
}

function band(points, gap, x, y) {
  let path = "";
  let run = [];
  const close = () => {
    if (run.length > 1) {
      const there = run.map((point) => `${x(point[0]).toFixed(1)} ${y(point[6]).toFixed(1)}`);
      const back = run.toReversed().map((point) => `${x(point[0]).toFixed(1)} ${y(point[3]).toFixed(1)}`);
      path += `M${there.join("L")}L${back.join("L")}Z`;
    }
    run = [];
  };
  for (const point of points) {
    const is_known = point[3] !== null && point[6] !== null;
    if (!is_known || (run.length > 0 && point[0] - run.at(-1)[0] > gap)) close();
    if (is_known) run.push(point);
  }
  close();
  return path;
}
