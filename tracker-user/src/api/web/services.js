// The list of services. A row is filled when it comes into view, and only what changed is written.

import { sparkline } from "./chart.js";
import {
  adminText, age, broken, chief, draw, effective, isSelected, make, memberName, micros, percent, setData, setText, setTitle, show,
} from "./words.js";

/** So many figures are kept for each row: a minute at the longest pause between answers. */
const SAMPLES = 40;
/** Loss is taken over this time. */
const WINDOW_S = 60;
/** Work on the rows stops after so long, and goes on when what waits was done: keys, scrolling, a frame. */
const SLICE_MS = 8;
/** At most so many rows stand in a block. */
const BLOCK = 15;
/** So many members of a service have a line in its row. */
const LINES = 4;

const RANKS = { down: 0, unknown: 1, up: 3 };
const names = new Intl.Collator(undefined, { numeric: true });

/** Lets the browser do what waits. */
const pause = () => globalThis.scheduler?.yield?.() ?? new Promise((resolve) => setTimeout(resolve));

/** Lets the browser draw a frame. */
const frame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

/** Where a service stands if problems come first. */
function rank(service) {
  const { admin } = service;
  const of = RANKS[effective(service)] ?? 1;
  return of === 3 && (service.verdict !== "up" || (admin && admin.state !== "auto")) ? 2 : of;
}

/**
 * A service of the list. What is known of it and what its element says are apart: the first is set at once, the second follows in
 * slices, and always from what is known then.
 */
class Row {
  constructor(name) {
    this.name = name;
    this.service = null;
    this.rank = -1;
    this.at = 0;
    /** Its place in the wanted order, and whether it is to be shown there. */
    this.place = 0;
    this.is_wanted = true;
    this.is_shown = true;
    this.is_seen = false;
    this.is_filled = false;
    this.samples = [];
    this.element = null;
    this.block = null;
    this.said = [];
    this.searched = [];
  }

  /** Takes what is known; says whether it moved. The document is not touched. */
  take(service, at) {
    const [old_rank, old_at] = [this.rank, this.at];
    this.service = service;
    this.rank = rank(service);
    this.at = at;
    return this.rank !== old_rank || at !== old_at;
  }

  /** Whether its element says another verdict than is known. */
  isStale() {
    return this.said[0] !== effective(this.service) || this.said[1] !== this.service.verdict;
  }

  /** Whether it has all of these words, in lower case. */
  matches(words) {
    if (words.length === 0) return true;
    if (this.searched[0] !== this.service) this.searched = [this.service, this.#text()];
    return words.every((word) => this.searched[1].includes(word));
  }

  #text() {
    const { name, verdict, cause, members, admin } = this.service;
    const of = members.flatMap((member) => [
      member.endpoint, member.interface, memberName(member), ...(member.trackers ?? []).map((tracker) => tracker.behind),
    ]);
    return [name, verdict, cause, admin?.state, ...of].join(" ").toLowerCase();
  }

  /** Makes the cells that each row has. */
  make() {
    this.verdict = make("span", { class: "verdict" });
    this.button = make("button", { type: "button", class: "open", tabindex: "-1", text: this.name });
    this.element = make("div", { class: "row", role: "listitem" }, this.verdict, make("div", { class: "name" }, this.button));
    this.element.row = this;
    this.write();
  }

  /** Writes the verdict, and shows or hides the row, if that changed. */
  write() {
    const { verdict } = this.service;
    if (this.isStale()) {
      const counts = effective(this.service);
      if (this.said[0] !== counts) this.element.dataset.verdict = counts;
      if (this.said[1] !== verdict) {
        this.verdict.dataset.verdict = verdict;
        this.verdict.textContent = verdict;
      }
      this.said = [counts, verdict];
    }
    if (this.is_shown !== this.is_wanted) {
      this.is_shown = this.is_wanted;
      this.element.hidden = !this.is_shown;
    }
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

  /** Writes what changed in the other cells. */
  fill() {
    if (!this.is_filled) this.#build();
    const { service } = this;
    const is_imposed = service.admin && service.admin.state !== "auto";
    const admin = is_imposed ? `${service.admin.state === "maintenance" ? "" : "forced "}${service.admin.state}` : "";
    setText(this.admin, is_imposed && service.verdict !== service.effective ? `${admin}, counts as ${service.effective}` : admin);
    setTitle(this.admin, adminText(service.admin));
    setText(this.word, service.last_verdict ? `${service.cause}, was ${service.last_verdict}` : service.cause);
    const seconds = (Date.now() - Date.parse(service.since)) / 1000;
    setText(this.since, age(Math.max(seconds, 0)));
    setTitle(this.since, `since ${service.since}`);
    const key = JSON.stringify(service.members.map((member) => [
      memberName(member), member.endpoint, member.interface, (member.trackers ?? []).map((tracker) => tracker.behind),
    ]));
    if (key !== this.key) {
      this.key = key;
      this.lines = service.members.slice(0, LINES).map((member) => path(service, member));
      const lines = [...this.lines];
      if (service.members.length > LINES) {
        lines.push(make("div", { class: "quiet", text: `and ${service.members.length - LINES} more members` }));
      }
      this.paths.replaceChildren(...lines);
    }
    this.lines.forEach((line, at) => state(line, service, service.members[at]));
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
  const hop = (part, word, text) => make(
    "span",
    { class: `hop ${part}` },
    make("span", { class: "hidden", text: `${word} ` }),
    make("span", { class: "at", text }),
  );
  const more = behind.length > 1 ? ` +${behind.length - 1}` : "";
  const line = make("div", { class: "path" });
  if (service.members.length > 1) {
    line.append(make("span", { class: "member" }, memberName(member), make("span", { class: "hidden" })));
  }
  line.append(
    hop("interface", "interface", member.interface ?? "no interface yet"),
    hop("endpoint", "endpoint", member.endpoint ?? "transparent"),
    make("span", { class: "hop box", "aria-hidden": "true" }, make("span", { class: "at" })),
  );
  if (behind.length > 0) line.append(hop("behind", "behind", behind[0] + more));
  return line;
}

/** Marks on the way how the member is: its elements and texts stay, so that a change of verdict costs little layout. */
function state(line, service, member) {
  const where = broken(member.verdict, member.cause);
  setData(line, "verdict", member.verdict);
  setData(line, "where", where);
  for (const part of ["interface", "endpoint", "behind"]) {
    const hop = line.querySelector(`.hop.${part}`);
    if (hop !== null) setData(hop, "broken", where === part ? "yes" : "no");
  }
  const name = line.querySelector(".member");
  if (name === null) return;
  const mark = isSelected(service, member) ? "in use" : "not in use";
  setTitle(name, mark);
  setData(name, "verdict", member.verdict);
  setData(name, "used", mark === "in use" ? "yes" : "no");
  setText(name.lastElementChild, `, ${member.verdict}, ${mark}`);
}

/**
 * Rows that stand together. The browser lays out, paints and watches the block as one while it is not in view: with a thousand rows that
 * were so each for itself, these took most of the time of an update.
 */
class Block {
  constructor() {
    this.element = make("div", { class: "block", role: "presentation" });
    this.element.block = this;
    this.is_seen = false;
    this.count = 0;
    this.shown = -1;
  }

  /** Its rows, in the order of the document. */
  *rows() {
    for (let element = this.element.firstElementChild; element !== null; element = element.nextElementSibling) yield element.row;
  }

  /** Has it take the room of the rows that are shown. */
  measure() {
    let shown = 0;
    for (const row of this.rows()) shown += row.is_shown;
    if (shown === this.shown) return;
    this.shown = shown;
    show(this.element, shown > 0);
    this.element.style.setProperty("--rows", shown);
  }
}

/** The list, its search, filter and order. */
export class Services {
  #list;
  #rows = new Map();
  #words = [];
  #problems = false;
  #order = "problems";
  #eye;
  #block_eye;
  #open;
  #current = null;
  #marked = null;
  /** All rows as they are to stand, those that stay where they are, and the place up to which the document is so. */
  #ordered = [];
  #staying = new Set();
  #settled = 0;
  #is_settling = false;
  /** Rows that came into view and have not all cells yet. */
  #bare = new Set();
  #is_dressing = false;

  constructor(list, open) {
    this.#list = list;
    this.#open = open;
    this.#eye = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const { row } = target;
        row.is_seen = isIntersecting;
        if (!isIntersecting) continue;
        row.write();
        if (row.is_filled) row.fill();
        else this.#bare.add(row);
      }
      this.#dress();
    }, { rootMargin: "150px" });
    // Rows are watched one by one only in the blocks in view.
    this.#block_eye = new IntersectionObserver((entries) => {
      for (const { target: { block }, isIntersecting } of entries) {
        if (block.is_seen === isIntersecting) continue;
        block.is_seen = isIntersecting;
        for (const row of block.rows()) this.#watch(row);
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
    let is_stale = false;
    const known = new Set();
    services.forEach((service, at) => {
      known.add(service.name);
      let row = this.#rows.get(service.name);
      if (row === undefined) {
        row = new Row(service.name);
        this.#rows.set(service.name, row);
        is_moved = true;
      } else if (effective(row.service) !== effective(service)) {
        changes.push({ name: service.name, verdict: effective(service), cause: service.cause });
      }
      // An answer without trackers leaves those that are known.
      const before = row.service;
      if (before !== null) {
        service.members.forEach((member, at) => {
          const old = before.members[at];
          const is_same = old?.endpoint === member.endpoint && memberName(old) === memberName(member);
          if (member.trackers.length === 0 && is_same) member.trackers = old.trackers;
        });
      }
      is_moved = row.take(service, at) || is_moved;
      is_stale = row.isStale() || is_stale;
      if (row.is_seen) {
        row.write();
        row.fill();
      }
    });
    for (const [name, row] of this.#rows) {
      if (known.has(name)) continue;
      this.#remove(row);
      this.#rows.delete(name);
      is_moved = true;
    }
    if (is_moved || this.#rows.size === 0) this.arrange();
    else if (is_stale) this.#settle();
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
      if (row.element !== null) row.write();
      if (row.is_seen) row.fill();
    }
    if (is_moved) this.arrange();
    return changes;
  }

  /** The names of the rows in view. */
  inView() {
    const rows = [...this.#rows.values()];
    return rows.filter((row) => row.is_seen && row.is_wanted).map((row) => row.name);
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

  /** Decides the order of the rows and which are wanted; the document follows. */
  arrange() {
    const rows = [...this.#rows.values()];
    let shown = 0;
    for (const row of rows) {
      row.is_wanted = (!this.#problems || row.rank < 3) && row.matches(this.#words);
      shown += row.is_wanted;
    }
    rows.sort((a, b) => {
      if (this.#order === "name") return names.compare(a.name, b.name);
      return (this.#order === "problems" ? a.rank - b.rank : 0) || a.at - b.at;
    });
    rows.forEach((row, place) => {
      row.place = place;
    });
    this.#ordered = rows;
    const is_current = this.#current !== null && this.#rows.get(this.#current.name) === this.#current && this.#current.is_wanted;
    if (!is_current) this.#reach(rows.find((row) => row.is_wanted) ?? null);
    this.#settle();
    this.arranged(shown, rows.length);
  }

  /**
   * Brings the document to what is known: at once if it is little, else in slices from the top of the list. What becomes known
   * meanwhile begins this anew, and what is so already costs next to nothing then.
   */
  async #settle() {
    this.#staying = this.#unmoved();
    this.#settled = 0;
    if (this.#is_settling) return;
    this.#is_settling = true;
    try {
      while (!this.#slice()) await pause();
    } finally {
      this.#is_settling = false;
    }
  }

  /** Brings the next rows to what is known, for a while; says whether that were the last. */
  #slice() {
    const start = performance.now();
    const active = document.activeElement;
    const rows = this.#ordered;
    let last = rows[this.#settled - 1] ?? null;
    while (this.#settled < rows.length) {
      const row = rows[this.#settled];
      if (row.element === null) row.make();
      else row.write();
      if (!this.#staying.has(row)) this.#put(row, last);
      last = row;
      this.#settled += 1;
      if (this.#settled % 8 === 0 && performance.now() - start > SLICE_MS) break;
    }
    const is_last = this.#settled >= rows.length;
    if (is_last) this.#join();
    for (const { block } of this.#list.children) block.measure();
    // What was moved in the document lost the focus.
    if (active !== document.activeElement && this.#list.contains(active)) active.focus({ preventScroll: true });
    performance.measure("rows", { start, end: performance.now() });
    return is_last;
  }

  /** Puts a row behind another, or before all. */
  #put(row, last) {
    const list = this.#list;
    let block = last === null ? list.firstElementChild?.block : last.block;
    if (block === undefined || (block !== row.block && block.count >= BLOCK)) {
      const next = new Block();
      this.#block_eye.observe(next.element);
      if (last === null) {
        list.prepend(next.element);
      } else {
        block.element.after(next.element);
        while (last.element.nextElementSibling !== null) this.#move(last.element.nextElementSibling.row, next, null);
      }
      // What stood behind `last` is in the new block now; the old one has room, unless `last` is its end.
      if (last === null || block.count >= BLOCK) block = next;
    }
    if (last === null || last.block !== block) this.#move(row, block, block.element.firstElementChild);
    else this.#move(row, block, last.element.nextElementSibling);
  }

  /** Moves a row into a block, before an element of it or to its end. */
  #move(row, block, before) {
    if (before === row.element) return;
    const old = row.block;
    block.element.insertBefore(row.element, before);
    if (old === block) return;
    row.block = block;
    block.count += 1;
    if (old !== null) this.#left(old);
    this.#watch(row);
  }

  #remove(row) {
    if (row.element === null) return;
    row.element.remove();
    this.#eye.unobserve(row.element);
    if (row.block !== null) this.#left(row.block);
    row.block = null;
  }

  /** A row left a block. */
  #left(block) {
    block.count -= 1;
    if (block.count > 0) return;
    this.#block_eye.unobserve(block.element);
    block.element.remove();
  }

  /** Watches whether a row is in view, if its block is. */
  #watch(row) {
    if (row.block.is_seen) {
      this.#eye.observe(row.element);
    } else {
      this.#eye.unobserve(row.element);
      row.is_seen = false;
    }
  }

  /** Joins blocks that became small, if there are many. */
  #join() {
    if (this.#list.childElementCount <= 2 * Math.ceil(this.#rows.size / BLOCK) + 2) return;
    for (let element = this.#list.firstElementChild; element !== null; element = element.nextElementSibling) {
      const { block } = element;
      let next = element.nextElementSibling?.block;
      while (next && block.count + next.count <= BLOCK) {
        for (const row of [...next.rows()]) this.#move(row, block, null);
        next = element.nextElementSibling?.block;
      }
    }
  }

  /** Makes the cells of rows that came into view, some in each frame: their layout takes longer than making them. */
  async #dress() {
    if (this.#is_dressing) return;
    this.#is_dressing = true;
    try {
      while (this.#bare.size > 0) {
        const start = performance.now();
        for (const row of this.#bare) {
          this.#bare.delete(row);
          if (row.is_seen) row.fill();
          if (performance.now() - start > SLICE_MS / 2) break;
        }
        if (this.#bare.size > 0) await frame();
      }
    } finally {
      this.#is_dressing = false;
    }
  }

  /** The most rows that stand in the wanted order in the document: only the others need to be moved. */
  #unmoved() {
    // At `n`, of all sequences of `n + 1` rows in the wanted order, the last row of the one that ends first.
    const ends = [];
    for (const row of [...this.#list.children].flatMap(({ block }) => [...block.rows()])) {
      let [low, high] = [0, ends.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (ends[middle].place < row.place) low = middle + 1;
        else high = middle;
      }
      row.previous = ends[low - 1] ?? null;
      ends[low] = row;
    }
    const rows = new Set();
    for (let row = ends.at(-1) ?? null; row !== null; row = row.previous) rows.add(row);
    return rows;
  }

  /** Moves the focus to a row, whether the document has it where it is to stand already or not yet. */
  #focus(row) {
    if (row.element === null) row.make();
    else row.write();
    if (row.block === null) this.#put(row, this.#list.lastElementChild?.lastElementChild.row ?? null);
    row.block.measure();
    row.button.focus();
  }

  /** Moves the focus to the first row that is shown. */
  focusFirst() {
    const row = this.#ordered.find((row) => row.is_wanted);
    if (row) this.#focus(row);
  }

  /** Moves the focus to a service; says whether it is shown. */
  focus(name) {
    const row = this.#rows.get(name);
    if (!row?.is_wanted) return false;
    this.#focus(row);
    return true;
  }

  /** Marks the service that is open. */
  mark(name) {
    const row = this.#rows.get(name) ?? null;
    if (row === this.#marked) return;
    if (this.#marked !== null) {
      this.#marked.element.dataset.open = "no";
      this.#marked.button.removeAttribute("aria-current");
    }
    if (row !== null) {
      if (row.element === null) row.make();
      row.element.dataset.open = "yes";
      row.button.setAttribute("aria-current", "true");
    }
    this.#marked = row;
  }

  /** Makes a row the one that the Tab key reaches. */
  #reach(row) {
    if (this.#current === row) return;
    if (this.#current !== null) this.#current.button.tabIndex = -1;
    if (row !== null) {
      if (row.element === null) row.make();
      row.button.tabIndex = 0;
    }
    this.#current = row;
  }

  #key(event) {
    const row = event.target.closest(".row")?.row;
    if (!row || event.ctrlKey || event.altKey || event.metaKey) return;
    const rows = this.#ordered.filter((row) => row.is_wanted);
    const at = rows.indexOf(row);
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 10, PageUp: at - 10, Home: 0, End: rows.length - 1 };
    const to = steps[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = rows[Math.min(Math.max(to, 0), rows.length - 1)];
    if (next) this.#focus(next);
  }
}
