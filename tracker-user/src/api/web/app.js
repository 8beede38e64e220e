// The page: asks the daemon again and again, follows its events, and hands what it learns to the parts.

import { Detail } from "./detail.js";
import { Services } from "./services.js";
import { NoToken, Source } from "./source.js";
import { Timeline } from "./timeline.js";
import { age, effective, make, setData, setText, show, verdict } from "./words.js";

/** Up to so many services, each answer has all trackers. */
const FEW = 60;
/** Pause between answers, with few services and with many. */
const PAUSE_MS = 1000;
const LONG_PAUSE_MS = 2000;
/** The same if something happened while an answer was under way: the answer with many services is long, and a burst has many events. */
const SHORT_PAUSE_MS = 50;
const SHORT_PAUSE_OF_MANY_MS = 250;
/** What was said longer ago is old. */
const OLD_MS = 4000;
/** The daemon that ended a turn longer ago does not keep up; it says `stalled` then. */
const STALLED_MS = 3000;
/** Trackers of so many services are asked for at a time: a request's head is limited. */
const NAMES = 100;
/** So many events of the past are read. */
const EVENTS = 1000;
/** More changes at a time are counted and not named. */
const NAMED = 3;

const $ = (id) => document.getElementById(id);
const source = new Source();
const detail = new Detail($("detail"), source, close);
const services = new Services($("list"), open);
const timeline = new Timeline($("timeline"), $("more"), $("quiet"), open);

let status = null;
let answered_ms = null;
let began_ms = performance.now();
let is_refused = false;
let is_streaming = false;
let was_old = false;
let chains_key = "";
let timer = null;
let is_asking = false;
let is_due = false;
let is_following = false;

function open(name) {
  detail.open(name);
  services.mark(name);
  timeline.only(name);
  setText($("events-title"), `Events of ${name}`);
  document.body.dataset.detail = "yes";
  const known = services.of(name);
  if (known) detail.take(known, status.hub, Date.now() / 1000);
  detail.focus();
  soon();
}

function close() {
  const { name } = detail;
  if (name === null) return;
  detail.close();
  services.mark(null);
  timeline.only(null);
  setText($("events-title"), "Events");
  delete document.body.dataset.detail;
  if (!services.focus(name)) $("search").focus();
}

/** Asks at once, or as soon as the present answer is there. */
function soon() {
  if (is_asking) is_due = true;
  else ask();
}

async function ask() {
  clearTimeout(timer);
  if (is_refused) return;
  is_asking = true;
  is_due = false;
  const is_first = status === null;
  try {
    const is_many = status !== null && status.services.length > FEW;
    // How many there are is not known at first: without trackers, the answer is short however many.
    const is_whole = status !== null && !is_many;
    const answer = await source.get(`v1/status?trackers=${is_whole}`);
    took(answer, is_whole);
    if (!is_whole) {
      const names = [...new Set([detail.name, ...services.inView()])].filter((name) => name !== null).slice(0, NAMES);
      if (names.length > 0) {
        const query = names.map((name) => `service=${encodeURIComponent(name)}`).join("&");
        announce(measured("figures", figures, await source.get(`v1/status?${query}`)));
      }
    }
  } catch (error) {
    if (error instanceof NoToken) askToken();
    // Of a name that is gone: the next answer does without it.
  }
  is_asking = false;
  look();
  if (is_refused) return;
  const is_many = status !== null && status.services.length > FEW;
  const pause = is_many ? LONG_PAUSE_MS : PAUSE_MS;
  const short_pause = is_many && !is_first ? SHORT_PAUSE_OF_MANY_MS : SHORT_PAUSE_MS;
  // A page that is not seen asks for nothing.
  if (document.hidden) return;
  timer = setTimeout(ask, is_due ? short_pause : pause);
}

/** Runs something with its time kept as a measure, which the developer tools show. */
function measured(name, work, ...values) {
  const start = performance.now();
  const result = work(...values);
  performance.measure(name, { start, end: performance.now() });
  if (performance.getEntriesByType("measure").length > 500) performance.clearMeasures();
  return result;
}

function figures(answer) {
  const now = Date.now() / 1000;
  const changes = services.figures(answer.services, now);
  const known = answer.services.find((service) => service.name === detail.name);
  if (known) detail.take(known, answer.hub, now);
  return changes;
}

function took(answer, is_whole) {
  answered_ms = performance.now();
  const is_first = status === null;
  status = answer;
  show($("content"), true);
  const changes = measured("update", update, answer, is_whole);
  // With the first answer it is known how many there are, and what is in view: the rest is asked for at once.
  if (is_first) is_due = true;
  else announce(changes);
}

function update(answer, is_whole) {
  setText($("hub"), answer.hub);
  setText($("instance"), answer.instance === "default" ? "" : answer.instance);
  const changes = services.take(answer.services);
  if (is_whole) figures(answer);
  if (detail.name !== null && services.of(detail.name) === undefined) close();
  summary(answer);
  chains(answer);
  return changes;
}

/** How many services are how. */
function summary(answer) {
  const counts = { up: 0, down: 0, unknown: 0 };
  let imposed = 0;
  for (const service of answer.services) {
    counts[effective(service)] += 1;
    if (service.admin && service.admin.state !== "auto") imposed += 1;
  }
  const key = JSON.stringify([counts, imposed]);
  const list = $("summary");
  if (list.dataset.key !== key) {
    list.dataset.key = key;
    const items = Object.entries(counts).map(
      ([word, number]) => make("li", { data: { empty: number === 0 ? "yes" : "no" } }, verdict(word, `${number} ${word}`)),
    );
    if (imposed > 0) items.push(make("li", {}, make("span", { class: "admin", text: `${imposed} imposed` })));
    list.replaceChildren(...items);
  }
  const troubles = counts.down > 0 ? `${counts.down} down: ` : counts.unknown > 0 ? `${counts.unknown} unknown: ` : "";
  const title = `${troubles}${answer.hub} - Tracker`;
  if (document.title !== title) document.title = title;
}

/** The chains: the hub, then each service in the order in which traffic passes them. */
function chains(answer) {
  const verdicts = new Map(answer.services.map((service) => [service.name, service]));
  const lanes = answer.chains.map((chain) => [
    chain.name, chain.verdict,
    (chain.services ?? []).map((name) => {
      const service = verdicts.get(name);
      return [name, service ? effective(service) : "unknown", service?.cause, service?.admin?.state];
    }),
  ]);
  const key = JSON.stringify([answer.hub, lanes]);
  if (key === chains_key) return;
  chains_key = key;
  show($("chains"), lanes.length > 0);
  const focused = document.activeElement?.closest?.("#chain-list button")?.dataset;
  const [lane_had, name_had] = [focused?.lane, focused?.service];
  $("chain-list").replaceChildren(...lanes.map(([name, word, links]) => make(
    "section",
    { class: "lane", data: { verdict: word }, "aria-label": `Chain ${name}` },
    make("h3", {}, verdict(word), ` ${name}`),
    make(
      "ol",
      {},
      make("li", { class: "end" }, make("span", { class: "at", text: answer.hub })),
      ...links.map(([service, word, cause, admin]) => make(
        "li",
        { data: { verdict: word } },
        make(
          "button",
          { type: "button", data: { service, lane: name }, title: `${service}: ${word}, ${cause}` },
          verdict(word, ""),
          make("span", { class: "hidden", text: `${word} ` }),
          service,
          admin && admin !== "auto" ? make("span", { class: "admin", text: admin }) : null,
        ),
      )),
    ),
  )));
  if (lane_had) {
    const buttons = [...$("chain-list").querySelectorAll("button")];
    buttons.find(({ dataset }) => dataset.lane === lane_had && dataset.service === name_had)?.focus();
  }
}

/** Says changes to those who do not see them. */
function announce(changes) {
  if (changes.length === 0) return;
  const said = changes.length <= NAMED
    ? changes.map(({ name, verdict, cause }) => `${name} is ${verdict}, ${cause}`)
    : Object.entries(Object.groupBy(changes, ({ verdict }) => verdict)).map(
      ([word, of]) => `${of.length} services are ${word}`,
    );
  setText($("live"), `${said.join("; ")}.`);
}

/** Whether what is shown is of now, and says so. */
function look() {
  if (is_refused) return;
  const now = performance.now();
  const old_ms = now - (answered_ms ?? began_ms);
  const is_old = old_ms > OLD_MS && !document.hidden;
  const is_stalled = status !== null && status.as_of_ms > STALLED_MS;
  const banner = $("banner");
  if (is_old) {
    const what = status === null
      ? "The daemon does not answer. This page goes on asking."
      : `No answer from the daemon for ${age(old_ms / 1000)}. What is shown is as old as that.`;
    // Read out when it appears, not each second.
    banner.setAttribute("aria-live", was_old ? "off" : "assertive");
    setText(banner, what);
  } else if (is_stalled) {
    setText(banner, `The daemon does not keep up: it last ended a turn ${age(status.as_of_ms / 1000)} ago. No verdict counts.`);
  }
  show(banner, is_old || is_stalled);
  setData(document.body, "old", is_old || is_stalled ? "yes" : "no");
  if (was_old && !is_old) setText($("live"), "The daemon answers again.");
  was_old = is_old;
  const fresh = status === null ? "connecting" : is_old ? "no answer" : is_streaming ? "live" : "live, without events";
  setText($("fresh"), fresh);
  setData($("fresh"), "state", is_old || is_stalled ? "old" : "live");
}

/** Asks for the token, because the daemon did. */
function askToken() {
  if (is_refused) return;
  is_refused = true;
  clearTimeout(timer);
  show($("content"), false);
  show($("banner"), false);
  show($("login"), true);
  setText($("fresh"), "token needed");
  setText($("login-error"), source.hasToken() ? "The daemon does not take this token. Check it, and give it again." : "");
  $("token").focus();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = $("token");
  source.useToken(field.value.trim());
  field.value = "";
  is_refused = false;
  began_ms = performance.now();
  show($("login"), false);
  if (status !== null) show($("content"), true);
  ask();
  follow();
});

async function follow() {
  if (is_following) return;
  is_following = true;
  const take = (kind, data) => {
    timeline.take(kind, data);
    if (kind === "event" && Date.now() - Date.parse(data.time) < 60000) soon();
  };
  const state = (is_open) => {
    is_streaming = is_open;
    // A daemon that came again is asked at once.
    if (is_open) soon();
    else look();
  };
  try {
    await source.follow(EVENTS, take, state);
  } catch {
    is_following = false;
    askToken();
  }
}

const THEMES = ["system", "light", "dark"];

function theme(choice) {
  if (choice === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  setText($("theme-name"), choice);
  $("theme").setAttribute("aria-label", `Theme: ${choice}`);
  try {
    localStorage.setItem("theme", choice);
  } catch {
    // Kept until the page is closed, then.
  }
}

function chosenTheme() {
  try {
    const choice = localStorage.getItem("theme");
    return THEMES.includes(choice) ? choice : "system";
  } catch {
    return "system";
  }
}

theme(chosenTheme());
$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  theme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
$("help-open").addEventListener("click", () => $("help").showModal());
$("help-close").addEventListener("click", () => $("help").close());
$("search").addEventListener("input", () => services.search($("search").value));
$("problems").addEventListener("change", () => services.onlyProblems($("problems").checked));
$("order").addEventListener("change", () => services.order($("order").value));
$("chain-list").addEventListener("click", ({ target }) => {
  const name = target.closest("button")?.dataset.service;
  if (name) open(name);
});
services.arranged = (shown, all) => {
  setText($("shown"), shown === all ? `${all} in all` : `${shown} of ${all}`);
  show($("none"), shown === 0 && status !== null);
  setText($("none"), all === 0 ? "This hub has no services." : "No service is like this. Empty the search, or show all.");
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || $("help").open || is_refused) return;
  const is_typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape") {
    if (detail.name !== null) close();
    else if ($("search").value !== "") {
      $("search").value = "";
      services.search("");
    } else return;
    event.preventDefault();
  } else if (event.target === $("search") && event.key === "ArrowDown") {
    event.preventDefault();
    services.focusFirst();
  } else if (is_typing) {
    return;
  } else if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
    $("search").select();
  } else if (event.key === "?") {
    event.preventDefault();
    $("help").showModal();
  } else if (event.key === "n") {
    $("problems").checked = !$("problems").checked;
    services.onlyProblems($("problems").checked);
  } else if (event.key === "ArrowDown" && event.target === document.body) {
    event.preventDefault();
    services.focusFirst();
  }
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  began_ms = performance.now();
  soon();
});
setInterval(look, 1000);
ask();
follow();
