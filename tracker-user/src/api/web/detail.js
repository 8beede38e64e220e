// One service, opened: the path of each member's probes, its trackers, and charts.

import { chart } from "./chart.js";
import {
  adminText, age, broken, count, effective, isSelected, make, memberName, micros, percent, setText, verdict,
} from "./words.js";

/** So many points are kept while a service is open. */
const KEPT = 600;
/** The chart of what was seen since the service was opened shows at most this long. */
const LIVE_S = 300;
/** Spans of the history, in seconds; 0 is what was seen since the service was opened. */
const SPANS = [[0, "live"], [3600, "1 h"], [86400, "1 d"], [604800, "1 w"], [2592000, "30 d"]];
/** History is asked for again after this time, in seconds, or later if it is long. */
const HISTORY_S = 15;
/** Counters that are named only if there is something to tell. */
const TROUBLES = [
  ["late", "late"], ["wrong_path", "wrong path"], ["corrupt", "corrupt"], ["elsewhere", "from elsewhere"],
  ["duplicate", "duplicate"], ["icmp_errors", "ICMP errors"], ["skipped", "not sent"], ["void", "void"],
];

/** The panel of the service that is open. */
export class Detail {
  #panel;
  #source;
  #close;
  #parts = null;
  #returns = new Map();
  #points = new Map();
  #counted = new Map();
  #span = 0;
  #history = null;
  #has_history = true;
  #asked = 0;
  #is_drawn = false;

  constructor(panel, source, close) {
    this.#panel = panel;
    this.#source = source;
    this.#close = close;
    this.name = null;
  }

  /** Opens a service. */
  open(name) {
    if (this.name === name) return;
    this.name = name;
    this.#returns.clear();
    this.#points.clear();
    this.#counted.clear();
    this.#history = null;
    this.#is_drawn = false;
    this.#asked = 0;
    this.#build();
    this.#panel.hidden = false;
    this.#read(name);
  }

  /** Closes it. */
  close() {
    this.name = null;
    this.#panel.hidden = true;
    this.#panel.replaceChildren();
    this.#parts = null;
  }

  /** Moves the focus to the name of the service. */
  focus() {
    this.#parts?.title.focus();
  }

  #build() {
    const title = make("h2", { id: "detail-title", tabindex: "-1", text: this.name });
    const shut = make("button", { type: "button", class: "tool" }, make("kbd", { text: "Esc" }), " Close");
    shut.addEventListener("click", () => this.#close());
    const spans = make("div", { class: "spans", role: "group", "aria-label": "Time shown by the charts" });
    for (const [span, text] of SPANS) {
      const button = make("button", { type: "button", class: "tool", "aria-pressed": String(span === this.#span), text });
      button.addEventListener("click", () => {
        this.#span = span;
        this.#asked = 0;
        this.#history = null;
        this.#is_drawn = false;
        for (const other of spans.children) other.setAttribute("aria-pressed", String(other === button));
        this.#tell();
      });
      spans.append(button);
    }
    this.#parts = {
      title,
      state: make("p", { class: "state" }),
      facts: make("p", { class: "quiet" }),
      admin: make("p", { class: "admin", hidden: true }),
      members: make("div", {}),
      spans,
      charts: make("div", {}),
      keys: new Map(),
    };
    const { state, facts, admin, members, charts } = this.#parts;
    const head = make("div", { class: "bar" }, title, shut);
    this.#panel.replaceChildren(head, state, admin, facts, members, make("h3", { text: "Loss and round-trip time" }), spans, charts);
  }

  /** Reads what only the configuration says: on which interfaces replies may arrive. */
  async #read(name) {
    try {
      const body = await this.#source.get(`v1/services/${encodeURIComponent(name)}`);
      // The member of the short form has the name "active"; so has an only member without a name, a role and a priority.
      const members = body.member ?? [{ ...body, name: "active" }];
      const is_active = members.length === 1 && members[0].priority === undefined;
      for (const member of members) {
        const of = is_active ? { role: "active", ...member } : member;
        if (member.returns) this.#returns.set(memberName(of), member.returns);
      }
      if (this.name === name) this.#parts.keys.clear();
    } catch {
      // The interface of the probes is shown, which is what holds unless another is configured.
    }
  }

  /** Takes what is known of the service now. */
  take(service, hub, now) {
    if (this.#parts === null) return;
    const { state, facts, admin, keys } = this.#parts;
    const imposed = adminText(service.admin);
    const is_imposed = imposed !== "";
    this.#renew("state", state, [service.verdict, service.cause], () => [verdict(service.verdict), ` ${service.cause}`]);
    admin.hidden = !is_imposed;
    setText(admin, is_imposed ? `${imposed}. It counts as ${effective(service)}.` : "");
    const since = age(Math.max((Date.now() - Date.parse(service.since)) / 1000, 0));
    const flaps = service.flaps ? ` ${count(service.flaps)} recent ${service.flaps === 1 ? "flap" : "flaps"}.` : "";
    const steered = service.steered ? ` ${count(service.steered)} packets steered.` : "";
    const used = [service.selected].flat().join(", ") || "none";
    const needed = service.members_up === undefined ? "" : `; ${service.members_up} of ${service.members.length} members must be up`;
    const selected = service.members.length > 1 ? ` In use: ${used}${needed}.` : "";
    setText(facts, `For ${since}, since ${service.since.replace("T", " ").replace(/\.\d+Z$/, "Z")}.${selected}${flaps}${steered}`);
    const shape = service.members.map((member) => [memberName(member), member.endpoint, (member.trackers ?? []).length]);
    this.#renew("members", this.#parts.members, shape, () => {
      keys.clear();
      keys.set("members", JSON.stringify(shape));
      return service.members.map((member, at) => this.#member(service, member, at));
    });
    service.members.forEach((member, at) => this.#fill(service, member, at, hub));
    this.#keep(service, now);
    this.#draw(service, now);
  }

  /** Fills an element anew if what it shows changed. */
  #renew(name, element, what, children) {
    const key = JSON.stringify(what);
    if (this.#parts.keys.get(name) === key) return;
    this.#parts.keys.set(name, key);
    element.replaceChildren(...children());
  }

  #member(service, member, at) {
    const title = service.members.length > 1 ? `Member ${memberName(member)}` : "Path of the probes";
    const path = make("ol", { class: "way", id: `way-${at}`, "aria-label": `${title}, from the hub and back` });
    const body = make("tbody", { id: `trackers-${at}` });
    const head = ["Behind", "Verdict", "Lost / sent", "RTT, mean"];
    const table = make(
      "table",
      {},
      make("caption", { class: "hidden", text: `Trackers of ${memberName(member)}` }),
      make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col", text })))),
      body,
    );
    return make(
      "section",
      { "aria-label": title },
      make("h3", { text: title }),
      path,
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Trackers of ${memberName(member)}` }, table),
    );
  }

  #fill(service, member, at, hub) {
    const path = document.getElementById(`way-${at}`);
    const body = document.getElementById(`trackers-${at}`);
    if (path === null || body === null) return;
    const trackers = member.trackers ?? [];
    const where = broken(member.verdict, member.cause);
    const returns = this.#returns.get(memberName(member)) ?? [member.interface ?? "its interface"];
    const behind = trackers.map((tracker) => [tracker.behind, tracker.verdict]);
    const detail = trackers.find((tracker) => tracker.detail && tracker.verdict !== "up")?.detail ?? null;
    const shown = [hub, member.interface, member.endpoint, member.verdict, member.cause, member.mode, member.send, member.admin,
      isSelected(service, member), member.priority, member.weight, returns, behind, detail, trackers[0]?.proof];
    this.#renew(`way ${at}`, path, shown, () => {
      const stop = (part, kind, name, note) => make(
        "li",
        { class: part, data: where === part ? { broken: "yes" } : {} },
        make("span", { class: "kind", text: `${kind} ` }),
        make("span", { class: "at", text: name }),
        note ? make("span", { class: "note quiet" }, ...[note].flat()) : null,
        where === part ? make("strong", { class: "fault", text: detail ? `${member.cause}: ${detail}` : member.cause }) : null,
      );
      const used = service.members.length > 1 ? (isSelected(service, member) ? ", in use" : ", not in use") : "";
      const rank = member.priority === undefined ? "" : `, priority ${member.priority}, weight ${member.weight}`;
      const imposed = adminText(member.admin);
      const shown = [" ", verdict(member.verdict), `${used}${rank}${imposed ? `, ${imposed}` : ""}`];
      const addresses = [...new Set(trackers.map((tracker) => tracker.behind).filter((address) => address))];
      path.dataset.where = where;
      path.dataset.verdict = member.verdict;
      return [
        stop("hub", "hub", hub),
        stop("interface", "interface", member.interface ?? "not known yet", member.send ? ` sends by ${member.send}` : " cannot send yet"),
        stop("endpoint", "endpoint", member.endpoint ?? "none, it is transparent"),
        stop("box", "service", service.name, shown),
        stop("behind", "behind", addresses.slice(0, 3).join(", ") || "…", addresses.length > 3 ? ` and ${addresses.length - 3} more` : ""),
        stop("return", "returns", returns.join(", "), member.mode ? ` receives by ${member.mode}` : ""),
      ];
    });
    // Rows are made once and their cells written, so that a reader of the table is not thrown out of it.
    while (body.rows.length < trackers.length) {
      body.append(make("tr", {}, make("th", { scope: "row" }), make("td"), make("td"), make("td")));
    }
    while (body.rows.length > trackers.length) body.deleteRow(-1);
    trackers.forEach((tracker, row) => {
      const { cells } = body.rows[row];
      const protocol = tracker.protocol ? ` ${tracker.protocol}` : "";
      const probe = `${tracker.probe}${protocol}${tracker.port ? ` ${tracker.port}` : ""}`;
      const to = tracker.behind ?? tracker.direction ?? "";
      this.#renew(`tracker ${at} ${row}`, cells[0], [to, probe], () => [to, " ", make("span", { class: "quiet", text: probe })]);
      const troubles = TROUBLES.filter(([key]) => tracker[key] > 0).map(([key, text]) => `${text} ${count(tracker[key])}`);
      const held = tracker.held ? `held back: ${tracker.held.verdict}, ${tracker.held.cause}` : "";
      const notes = [tracker.detail, held, ...troubles].filter((text) => text).join("; ");
      this.#renew(`verdict ${at} ${row}`, cells[1], [tracker.verdict, tracker.cause, notes], () => [
        verdict(tracker.verdict), ` ${tracker.cause}`, notes ? make("div", { class: "quiet", text: notes }) : "",
      ]);
      setText(cells[2], `${count(tracker.lost)} / ${count(tracker.sent)}`);
      setText(cells[3], `${micros(tracker.rtt_us.last)}, ${micros(tracker.rtt_us.avg)}`);
    });
  }

  /** Keeps what happened since the answer before, as points of a chart. */
  #keep(service, now) {
    for (const member of service.members) {
      const name = memberName(member);
      const trackers = member.trackers ?? [];
      if (trackers.length === 0) continue;
      const sum = (key) => trackers.reduce((total, tracker) => total + tracker[key], 0);
      const counted = { received: sum("received"), lost: sum("lost") };
      const before = this.#counted.get(name);
      this.#counted.set(name, counted);
      if (!before || counted.received < before.received || counted.lost < before.lost) continue;
      const [received, lost] = [counted.received - before.received, counted.lost - before.lost];
      const rtts = received > 0 ? trackers.map((tracker) => tracker.rtt_us.last).filter((rtt) => rtt !== null) : [];
      const mean = rtts.length > 0 ? rtts.reduce((total, rtt) => total + rtt, 0) / rtts.length : null;
      const point = [now, received + lost, lost, rtts.length ? Math.min(...rtts) : null, mean, null, rtts.length ? Math.max(...rtts) : null];
      const points = this.#points.get(name) ?? [];
      points.push(point);
      if (points.length > KEPT) points.shift();
      this.#points.set(name, points);
    }
  }

  /** Asks for the history, if that is what is shown and it is old. */
  async #tell() {
    const [name, span, now] = [this.name, this.#span, Date.now() / 1000];
    if (span === 0 || !this.#has_history || now - this.#asked < Math.max(HISTORY_S, span / 300)) return;
    this.#asked = now;
    try {
      const history = await this.#source.get(`v1/history/${encodeURIComponent(name)}?since=${span}s`);
      if (this.name !== name || this.#span !== span) return;
      this.#history = history;
      this.#is_drawn = false;
    } catch (error) {
      // No history is kept, or this daemon has none.
      if (error.status === 404) {
        this.#has_history = false;
        this.#is_drawn = false;
      }
    }
  }

  #draw(service, now) {
    const { charts, spans } = this.#parts;
    this.#tell();
    spans.hidden = !this.#has_history;
    const span = this.#has_history ? this.#span : 0;
    if (span > 0 && this.#is_drawn) return;
    this.#is_drawn = true;
    const figures = service.members.map((member) => {
      const name = memberName(member);
      const title = service.members.length > 1 ? name : service.name;
      if (span === 0) {
        const points = this.#points.get(name) ?? [];
        const from = Math.max(now - LIVE_S, Math.min(points[0]?.[0] ?? now, now - 60));
        return chart(points, from, now, title);
      }
      const members = this.#history?.members ?? [];
      const of = members.findLast((one) => one.member === name && one.endpoint === member.endpoint)
        ?? members.findLast((one) => one.member === name);
      return chart(of?.points ?? [], now - span, now, title);
    });
    charts.replaceChildren(...figures);
  }
}
