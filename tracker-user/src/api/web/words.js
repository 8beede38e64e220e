// Texts and numbers as people read them, and small helpers for the document.

/** Makes an element: tag, attributes (`text` is its text, `data` its data attributes), children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Makes an element of SVG. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Sets the text of an element if it has another one. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets the title of an element if it has another one. */
export function setTitle(element, title) {
  if (element.title !== title) element.title = title;
}

/** Sets a data attribute if it has another value. */
export function setData(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

/** Shows or hides an element. */
export function show(element, is_shown) {
  if (element.hidden === is_shown) element.hidden = !is_shown;
}

/** A verdict as a word with a shape and a colour of its own: the style sheet draws the shape. */
export function verdict(word, text = word) {
  return make("span", { class: "verdict", data: { verdict: word }, text });
}

/** A number of seconds as "12 s", "3 min", "5 h", "2 d". */
export function age(seconds) {
  if (seconds < 0.5) return "now";
  if (seconds < 60) return `${Math.round(seconds)}\u00a0s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}\u00a0min`;
  if (seconds < 86400 * 2) return `${Math.floor(seconds / 3600)}\u00a0h`;
  return `${Math.floor(seconds / 86400)}\u00a0d`;
}

/** Microseconds as "41 µs", "1.20 ms", "2.10 s"; a dash if there are none. */
export function micros(us) {
  if (us === null || us === undefined) return "–";
  if (us < 1000) return `${Math.round(us)}\u00a0µs`;
  if (us < 1e6) return `${(us / 1000).toFixed(us < 1e5 ? 2 : 0)}\u00a0ms`;
  return `${(us / 1e6).toFixed(2)}\u00a0s`;
}

/** A part as "0 %", "0.4 %", "12 %"; a dash if it is not known. */
export function percent(part) {
  if (part === null || part === undefined) return "–";
  const value = part * 100;
  if (value === 0) return "0\u00a0%";
  return value < 10 ? `${Math.max(value, 0.1).toFixed(1)}\u00a0%` : `${Math.round(value)}\u00a0%`;
}

/** A number with a thin space between thousands. */
export function count(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, "\u2009");
}

const today = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const other = new Intl.DateTimeFormat(undefined, {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false,
});

/** A time as "14:03:22", with the day before it if it is not today. */
export function clock(time) {
  const date = new Date(time);
  return (date.toDateString() === new Date().toDateString() ? today : other).format(date);
}

/** The name of a member: its own, else its role, else its endpoint. */
export function memberName(member) {
  return member.name ?? member.role ?? member.endpoint ?? "member";
}

/** Whether a member is in use. */
export function isSelected(service, member) {
  const name = memberName(member);
  return Array.isArray(service.selected) ? service.selected.includes(name) : service.selected === name;
}

/** The member whose figures stand for the service: one in use, else the first. */
export function chief(service) {
  return service.members.find((member) => isSelected(service, member)) ?? service.members[0];
}

const PLACES = {
  "interface-down": "interface",
  "interface-missing": "interface",
  "send-failed": "interface",
  "next-hop-unresolved": "endpoint",
  "wrong-path": "return",
  corrupt: "return",
  stalled: "hub",
  depends: "hub",
};

/** The part of the path at which something with this cause is broken; none while it is up. */
export function broken(verdict, cause) {
  if (verdict === "up") return "";
  if (verdict === "unknown" && cause === "no-reply") return "";
  return PLACES[cause] ?? "behind";
}

/** What an operator imposes, in a few words; empty if nothing. */
export function adminText(admin) {
  if (!admin || admin.state === "auto") return "";
  let text = admin.state === "maintenance" ? "maintenance" : `forced ${admin.state}`;
  if (admin.until) text += ` until ${clock(admin.until)}`;
  if (admin.by) text += ` by ${admin.by}`;
  if (admin.reason) text += `: ${admin.reason}`;
  return text;
}

/** What a service counts as. */
export function effective(service) {
  return service.effective ?? service.verdict;
}
