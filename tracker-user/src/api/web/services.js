// The list of services. A row is filled when it comes into view, and only what changed is written.

import { sparkline } from "./chart.js";
import {
  adminText, age, broken, chief, draw, effective, isSelected, make, memberName, micros, percent, setData, setText, show,
} from "./words.js";

/** So many figures are kept for each row: a minute at the longest pause between answers. */
const SAMPLES = 40;
/** Loss is taken over this time. */
const WINDOW_S = 60;
/** So many rows are made in one frame: the page answers keys meanwhile. */
const MADE = 150;
/** So many members of a service have a line in its row. */
const LINES = 4;

const RANKS = { down: 0, unknown: 1, up: 3 };

class Row {
  constructor(name) {
    this.name = name;
    this.service = null;
    this.at = 0;
    this.is_seen = false;
    this.is_filled = false;
    this.haystack = "";
    this.samples = [];
    this.verdict = make("span", { class: "verdict" });
    this.button = make("button", { type: "button", class: "open", tabindex: "-1", text: name });
    this.element = make("li", { class: "row" }, this.verdict, make("div", { class: "name" }, this.button));
    this.element.row = this;
  }

  /** Where it stands if problems come first. */
  rank() {
    const { admin } = this.service;
    const rank = RANKS[effective(this.service)] ?? 1;
    return rank === 3 && (this.service.verdict !== "up" || (admin && admin.state !== "auto")) ? 2 : rank;
  }

  /** Takes what is known; says whether it moved to another rank. */
  take(service, at) {
    const before = this.service === null ? -1 : this.rank();
    this.service = service;
    this.at = at;
    setData(this.element, "verdict", effective(service));
    setData(this.verdict, "verdict", service.verdict);
    setText(this.verdict, service.verdict);
    if (this.is_seen) this.fill();
    return before !== this.rank();
  }

  /** Whether it has all of these words, in lower case. */
  matches(words) {
    if (words.length === 0) return true;
    const { name, verdict, cause, members, admin } = this.service;
    const of = members.flatMap((member) => [
      member.endpoint, member.interface, memberName(member), ...(member.trackers ?? []).map((tracker) => tracker.behind),
    ]);
    const text = [name, verdict, cause, admin?.state, ...of].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  /** Makes the cells that only a row in view has. */
  #build() {
    this.is_filled = true;
    this.admin = make("span", { class: "admin" });
    this.button.after(this.admin);
    this.paths = make("div", { class: "paths" });
    this.word = make("span", { class: "word" });
    this.since = make("span", { class: "quiet" });
    this.loss = make("span", { class: "figure" });
    this.rtt = make("span", { class: "figure" });
    this.line = draw("path", {});
    const spark = draw("svg", { viewBox: "0 0 60 16", class: "spark", "aria-hidden": "true" }, this.line);
    const name = (text) => make("span", { class: "hidden", text });
    this.element.append(
      this.paths,
      make("div", { class: "cause" }, this.word, " ", this.since),
      make("div", { class: "loss" }, name("loss "), this.loss),
      make("div", { class: "rtt" }, spark, name("round-trip time "), this.rtt),
    );
  }

  /** Writes what changed. */
  fill() {
    if (!this.is_filled) this.#build();
    const { service } = this;
    const is_imposed = service.admin && service.admin.state !== "auto";
    const admin = is_imposed ? `${service.admin.state === "maintenance" ? "" : "forced "}${service.admin.state}` : "";
    setText(this.admin, is_imposed && service.verdict !== service.effective ? `${admin}, counts as ${service.effective}` : admin);
    this.admin.title = adminText(service.admin);
    setText(this.word, service.last_verdict ? `${service.cause}, was ${service.last_verdict}` : service.cause);
    const seconds = (Date.now() - Date.parse(service.since)) / 1000;
    setText(this.since, age(Math.max(seconds, 0)));
    this.since.title = `since ${service.since}`;
    const key = JSON.stringify(service.members.map((member) => [
      memberName(member), member.endpoint, member.interface, member.verdict, member.cause, isSelected(service, member),
      (member.trackers ?? []).map((tracker) => tracker.behind),
    ]));
    if (key !== this.key) {
      this.key = key;
      const lines = service.members.slice(0, LINES).map((member) => path(service, member));
      if (service.members.length > LINES) {
        lines.push(make("div", { class: "quiet", text: `and ${service.members.length - LINES} more members` }));
      }
      this.paths.replaceChildren(...lines);
    }
    this.#figures();
  }

  /** Keeps loss and round-trip time of the member in use. */
  sample(now) {
    const member = chief(this.service);
    const trackers = member?.trackers ?? [];
    if (trackers.length === 0) return;
    const sum = (key) => trackers.reduce((total, tracker) => total + tracker[key], 0);
    const [received, lost] = [sum("received"), sum("lost")];
    const before = this.samples.at(-1);
    if (before && (before.of !== memberName(member) || received < before.received || lost < before.lost)) this.samples = [];
    const last = this.samples.at(-1);
    const answered = trackers.filter((tracker) => tracker.verdict !== "down" && tracker.rtt_us.last !== null);
    const mean = answered.length > 0 ? answered.reduce((total, tracker) => total + tracker.rtt_us.last, 0) / answered.length : null;
    const is_news = !last || received > last.received;
    this.samples.push({ of: memberName(member), now, received, lost, rtt: is_news ? mean : null });
    if (this.samples.length > SAMPLES) this.samples.shift();
  }

  #figures() {
    const last = this.samples.at(-1);
    if (!last) return;
    const first = this.samples.find((sample) => last.now - sample.now <= WINDOW_S);
    const [received, lost] = [last.received - first.received, last.lost - first.lost];
    const loss = received + lost > 0 ? lost / (received + lost) : null;
    setText(this.loss, percent(loss));
    setData(this.loss, "bad", loss > 0 ? "yes" : "no");
    const known = this.samples.findLast((sample) => sample.rtt !== null);
    setText(this.rtt, this.service.verdict === "down" || !known ? "–" : micros(known.rtt));
    const line = sparkline(this.samples.map((sample) => sample.rtt));
    if (this.line.getAttribute("d") !== line) this.line.setAttribute("d", line);
  }
}

/** The way of a member's probes: interface, endpoint, the service, behind. */
function path(service, member) {
  const behind = [...new Set((member.trackers ?? []).map((tracker) => tracker.behind).filter((address) => address))];
  const where = broken(member.verdict, member.cause);
  const hop = (part, word, text) => make(
    "span",
    { class: `hop ${part}`, data: where === part ? { broken: "yes" } : {} },
    make("span", { class: "hidden", text: `${word} ` }),
    make("span", { class: "at", text }),
  );
  const more = behind.length > 1 ? ` +${behind.length - 1}` : "";
  const line = make("div", { class: "path", data: { verdict: member.verdict, where } });
  if (service.members.length > 1) {
    const mark = isSelected(service, member) ? "in use" : "not in use";
    line.append(make(
      "span",
      { class: "member", title: mark, data: { verdict: member.verdict, used: mark === "in use" ? "yes" : "no" } },
      memberName(member),
      make("span", { class: "hidden", text: `, ${member.verdict}, ${mark}` }),
    ));
  }
  line.append(
    hop("interface", "interface", member.interface ?? "no interface yet"),
    hop("endpoint", "endpoint", member.endpoint ?? "transparent"),
    make("span", { class: "hop box", "aria-hidden": "true" }, make("span", { class: "at" })),
  );
  if (behind.length > 0) line.append(hop("behind", "behind", behind[0] + more));
  return line;
}

/** The list, its search, filter and order. */
export class Services {
  #list;
  #rows = new Map();
  #words = [];
  #problems = false;
  #order = "problems";
  #eye;
  #open;
  #current = null;
  #rest = 0;

  constructor(list, open) {
    this.#list = list;
    this.#open = open;
    this.#eye = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        target.row.is_seen = isIntersecting;
        if (isIntersecting && target.row.service !== null) target.row.fill();
      }
    }, { rootMargin: "150px" });
    list.addEventListener("click", ({ target }) => {
      const row = target.closest(".row")?.row;
      if (!row || String(getSelection()) !== "") return;
      this.#reach(row);
      open(row.name);
    });
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("focusin", ({ target }) => {
      const row = target.closest(".row")?.row;
      if (row) this.#reach(row);
    });
  }

  /** Takes an answer with all services. Returns the changes of what counts: name, verdict, cause. */
  take(services) {
    const changes = [];
    let is_moved = false;
    const known = new Set();
    let made = 0;
    cancelAnimationFrame(this.#rest);
    services.forEach((service, at) => {
      known.add(service.name);
      if (made === MADE && !this.#rows.has(service.name)) return;
      let row = this.#rows.get(service.name);
      if (row === undefined) {
        made += 1;
        row = new Row(service.name);
        this.#rows.set(service.name, row);
        this.#list.append(row.element);
        this.#eye.observe(row.element);
        is_moved = true;
      } else if (effective(row.service) !== effective(service)) {
        changes.push({ name: service.name, verdict: effective(service), cause: service.cause });
      }
      // An answer without trackers leaves those that are known.
      const before = row.service;
      if (before !== null) {
        service.members.forEach((member, at) => {
          const old = before.members[at];
          if (member.trackers.length === 0 && old?.endpoint === member.endpoint) member.trackers = old.trackers;
        });
      }
      const is_elsewhere = row.at !== at;
      is_moved = row.take(service, at) || is_elsewhere || is_moved;
    });
    for (const [name, row] of this.#rows) {
      if (known.has(name)) continue;
      this.#eye.unobserve(row.element);
      row.element.remove();
      this.#rows.delete(name);
      is_moved = true;
    }
    if (is_moved || this.#rows.size === 0) this.arrange();
    // The others in the next frames, unless another answer comes before.
    if (made === MADE) this.#rest = requestAnimationFrame(() => this.take(services));
    return changes;
  }

  /** Takes services with trackers, and keeps their figures. Returns changes as `take` does. */
  figures(services, now) {
    const changes = [];
    let is_moved = false;
    for (const service of services) {
      const row = this.#rows.get(service.name);
      if (row === undefined) continue;
      if (effective(row.service) !== effective(service)) {
        changes.push({ name: service.name, verdict: effective(service), cause: service.cause });
      }
      is_moved = row.take(service, row.at) || is_moved;
      row.sample(now);
      if (row.is_seen) row.fill();
    }
    if (is_moved) this.arrange();
    return changes;
  }

  /** The names of the rows in view. */
  inView() {
    const rows = [...this.#rows.values()];
    return rows.filter((row) => row.is_seen && !row.element.hidden).map((row) => row.name);
  }

  /** What is known of a service. */
  of(name) {
    return this.#rows.get(name)?.service;
  }

  /** Shows only what has these words. */
  search(text) {
    this.#words = text.toLowerCase().split(/\s+/).filter((word) => word !== "");
    this.arrange();
  }

  /** Shows only what is not up, or all. */
  onlyProblems(is_only) {
    this.#problems = is_only;
    this.arrange();
  }

  /** Orders the rows. */
  order(order) {
    this.#order = order;
    this.arrange();
  }

  /** Called with the numbers of services shown and of all, whenever they may have changed. */
  arranged = () => {};

  /** Puts the rows in order and hides those that are not wanted. */
  arrange() {
    const rows = [...this.#rows.values()];
    let shown = 0;
    for (const row of rows) {
      const is_shown = (!this.#problems || row.rank() < 3) && row.matches(this.#words);
      shown += is_shown;
      show(row.element, is_shown);
    }
    rows.sort((a, b) => {
      if (this.#order === "name") return a.name.localeCompare(b.name, undefined, { numeric: true });
      return (this.#order === "problems" ? a.rank() - b.rank() : 0) || a.at - b.at;
    });
    const active = document.activeElement;
    let next = this.#list.firstElementChild;
    for (const { element } of rows) {
      if (next === element) {
        next = next.nextElementSibling;
      } else if (next?.nextElementSibling === element) {
        // One that goes down the list is moved alone, not all that come before it.
        const gone = next;
        next = element.nextElementSibling;
        gone.remove();
      } else {
        this.#list.insertBefore(element, next);
      }
    }
    // What was moved in the document lost the focus.
    if (active !== document.activeElement && this.#list.contains(active)) active.focus({ preventScroll: true });
    const is_current = this.#current !== null && this.#rows.has(this.#current.name) && !this.#current.element.hidden;
    if (!is_current) this.#reach(this.#shown()[0] ?? null);
    this.arranged(shown, rows.length);
  }

  /** Moves the focus to the first row that is shown. */
  focusFirst() {
    this.#shown()[0]?.button.focus();
  }

  /** Moves the focus to a service; says whether it is shown. */
  focus(name) {
    const row = this.#rows.get(name);
    if (!row || row.element.hidden) return false;
    row.button.focus();
    return true;
  }

  /** Marks the service that is open. */
  mark(name) {
    for (const row of this.#rows.values()) {
      const is_open = row.name === name;
      if ((row.element.dataset.open === "yes") !== is_open) {
        row.element.dataset.open = is_open ? "yes" : "no";
        if (is_open) row.button.setAttribute("aria-current", "true");
        else row.button.removeAttribute("aria-current");
      }
    }
  }

  #shown() {
    return [...this.#list.children].map((element) => element.row).filter((row) => !row.element.hidden);
  }

  /** Makes a row the one that the Tab key reaches. */
  #reach(row) {
    if (this.#current === row) return;
    if (this.#current !== null) this.#current.button.tabIndex = -1;
    if (row !== null) row.button.tabIndex = 0;
    this.#current = row;
  }

  #key(event) {
    const row = event.target.closest(".row")?.row;
    if (!row || event.ctrlKey || event.altKey || event.metaKey) return;
    const rows = this.#shown();
    const at = rows.indexOf(row);
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 10, PageUp: at - 10, Home: 0, End: rows.length - 1 };
    const to = steps[event.key];
    if (to === undefined) return;
    event.preventDefault();
    rows[Math.min(Math.max(to, 0), rows.length - 1)].button.focus();
  }
}
