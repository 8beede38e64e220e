// The events, newest first. A burst, that is events of one group, is one entry: its cause once, and how many fell.

import { adminText, clock, make, micros, show, verdict } from "./words.js";

/** So many bursts are kept. */
const KEPT = 1000;
/** So many are shown at first, and with each "earlier". */
const STEP = 60;
/** So many events of a burst are listed. */
const LISTED = 200;
/** With more, the list is made when it is unfolded: a burst is drawn anew with each of its events that comes. */
const FEW = 20;

/** Events of a burst come one after the other; what came in this time is drawn at once. */
const GATHER_MS = 100;

/** The timeline: takes events, and draws those of a short time together. */
export class Timeline {
  #list;
  #more;
  #none;
  #open;
  #groups = new Map();
  #shown = STEP;
  #only = null;
  #is_due = false;

  constructor(list, more, none, open) {
    this.#list = list;
    this.#more = more;
    this.#none = none;
    this.#open = open;
    more.addEventListener("click", () => {
      this.#shown += STEP;
      this.#draw();
    });
    list.addEventListener("click", ({ target }) => {
      const name = target.closest("button[data-service]")?.dataset.service;
      if (name) open(name);
    });
  }

  /** Shows only events of a service; of all if it is null. */
  only(service) {
    this.#only = service;
    this.#shown = STEP;
    this.#draw();
  }

  /** Takes an event of the stream, by its kind. */
  take(kind, data) {
    if (kind === "reset") {
      this.#groups.clear();
    } else if (kind === "missed") {
      const key = `missed ${data.next}`;
      this.#groups.set(key, { key, events: [], missed: data.missed, is_new: true });
    } else if (kind === "event") {
      const key = `${data.run}:${data.group || data.seq}`;
      let group = this.#groups.get(key);
      if (group === undefined) {
        group = { key, events: [] };
        this.#groups.set(key, group);
        if (this.#groups.size > KEPT) this.#groups.delete(this.#groups.keys().next().value);
      }
      group.events.push(data);
      group.is_new = true;
    }
    if (!this.#is_due) {
      this.#is_due = true;
      setTimeout(() => {
        this.#is_due = false;
        this.#draw();
      }, GATHER_MS);
    }
  }

  #draw() {
    const wanted = [...this.#groups.values()].filter(
      (group) => this.#only === null || group.events.some((event) => event.service === this.#only),
    );
    const last = wanted.slice(-this.#shown).reverse();
    for (const group of last) {
      if (!group.is_new && group.element) continue;
      const is_open = group.element?.querySelector("details")?.open ?? false;
      group.is_new = false;
      const element = entry(group, is_open);
      group.element?.replaceWith(element);
      group.element = element;
    }
    // Only what moved is put anew, so that focus and what is unfolded stay.
    last.forEach(({ element }, at) => {
      const there = this.#list.children[at];
      if (there !== element) this.#list.insertBefore(element, there ?? null);
    });
    while (this.#list.children.length > last.length) this.#list.lastElementChild.remove();
    show(this.#none, last.length === 0);
    show(this.#more, wanted.length > last.length);
  }
}

function named(name) {
  return make("button", { type: "button", class: "link", data: { service: name }, text: name });
}

/** What an event is about. */
function subject(event) {
  if (event.chain) return [`chain ${event.chain}`];
  const parts = [named(event.service)];
  if (event.member) parts.push(` ${event.member}`);
  if (event.behind) parts.push(` to ${event.behind}`);
  return parts;
}

/** What an event says of its subject. */
function predicate(event) {
  if (event.kind === "removed") return [" was removed"];
  if (event.kind === "admin") {
    const text = adminText(event.admin) || "auto again";
    return [` ${text}${event.effective ? `, counts as ${event.effective}` : ""}`];
  }
  const parts = [" ", verdict(event.to), ` ${event.cause}`];
  if (event.detail) parts.push(make("span", { class: "quiet", text: ` ${event.detail}` }));
  return parts;
}

/** The events of a burst, one by one. */
function lines(events) {
  const listed = events.slice(0, LISTED).map((event) => make("li", {}, ...subject(event), ...predicate(event)));
  if (events.length > LISTED) listed.push(make("li", { class: "quiet", text: `and ${events.length - LISTED} more` }));
  return listed;
}

function entry(group, is_open) {
  if (group.missed) {
    const text = `${group.missed} events were dropped before they could be shown`;
    return make("li", { class: "entry" }, make("p", { class: "quiet", text }));
  }
  const { events } = group;
  const first = events[0];
  // A service's own change says what its trackers' and members' changes come to.
  const own = events.filter((event) => event.service && !event.member && !event.behind);
  const fell = new Set(own.filter((event) => event.to === "down").map((event) => event.service));
  const unknown = new Set(own.filter((event) => event.to === "unknown").map((event) => event.service));
  const rose = new Set(own.filter((event) => event.to === "up").map((event) => event.service));
  const names = new Set(events.map((event) => event.service).filter((name) => name));
  const chains = new Set(events.map((event) => event.chain).filter((name) => name));
  const main = own.at(-1) ?? events.at(-1);
  const time = make("time", { datetime: first.time, title: first.time, text: clock(first.time) });
  const head = [time, " "];
  if (names.size > 1 && fell.size + rose.size + unknown.size > 1) {
    const parts = [[fell, "down"], [unknown, "unknown"], [rose, "up"]].filter(([set]) => set.size > 0);
    parts.forEach(([set, word], at) => {
      head.push(at > 0 ? ", " : "", make("strong", { text: `${set.size} services` }), " ", verdict(word));
    });
    const cause = events.find((event) => event.tracker || event.behind) ?? first;
    head.push(` ${cause.cause}`);
    if (cause.detail) head.push(make("span", { class: "quiet", text: ` ${cause.detail}` }));
  } else {
    const source = events.find((event) => event.detail && event.to === main.to && event.service === main.service);
    head.push(...subject(main), ...predicate(main.detail ? main : { ...main, detail: source?.detail }));
    const detection = main.detection_us ?? events.find((event) => event.detection_us)?.detection_us;
    if (detection) head.push(make("span", { class: "quiet", text: ` in ${micros(detection)}` }));
  }
  if (chains.size > 0 && !main.chain) {
    head.push(make("span", { class: "quiet", text: `, chain ${[...chains].join(", ")}` }));
  }
  const item = make("li", { class: "entry", data: { verdict: main.kind === "verdict" || !main.kind ? main.to : "admin" } });
  item.append(make("p", {}, ...head));
  if (events.length > 1) {
    const list = make("ul", {});
    const details = make("details", {}, make("summary", { text: `${events.length} events` }), list);
    if (is_open || events.length <= FEW) list.append(...lines(events));
    details.open = is_open;
    details.addEventListener("toggle", () => {
      if (details.open && list.childElementCount === 0) list.append(...lines(events));
    });
    item.append(details);
  }
  return item;
}
