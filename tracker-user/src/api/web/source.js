// What the page knows: answers of the API, asked for again and again, and the event stream.

/** Asking for longer than this is given up. */
const PATIENCE_MS = 8000;
/** An event stream that is silent for longer is opened anew; the daemon sends a comment every 15 s. */
const SILENCE_MS = 40000;
/** The longest pause before a stream is opened anew. */
const LONGEST_PAUSE_MS = 10000;

/** The request does not bear the token. */
export class NoToken extends Error {}

/** An answer other than the wanted one. */
export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Asks the API, with the token if there is one. The token is kept here and nowhere else. */
export class Source {
  #token = null;

  /** Sets the token. */
  useToken(token) {
    this.#token = token;
  }

  /** Whether a token was given. */
  hasToken() {
    return this.#token !== null;
  }

  async #fetch(path, headers, signal) {
    if (this.#token !== null) headers.Authorization = `Bearer ${this.#token}`;
    const response = await fetch(path, { headers, signal, cache: "no-store", credentials: "omit" });
    if (response.status === 401) throw new NoToken();
    if (!response.ok) throw new Refused(response.status, `${path}: ${response.status}`);
    return response;
  }

  /** The JSON at a path. */
  async get(path) {
    const response = await this.#fetch(path, { Accept: "application/json" }, AbortSignal.timeout(PATIENCE_MS));
    return response.json();
  }

  /**
   * Follows the event stream for ever: after a break it goes on where it ended. `take` gets the kind and the JSON of each event,
   * `state` is told whether the stream is open.
   */
  async follow(last, take, state) {
    let place = null;
    let pause = 500;
    for (;;) {
      const control = new AbortController();
      let silent;
      const wait = () => {
        clearTimeout(silent);
        silent = setTimeout(() => control.abort(), SILENCE_MS);
      };
      try {
        wait();
        const headers = { Accept: "text/event-stream" };
        if (place !== null) headers["Last-Event-ID"] = place;
        const path = place === null ? `v1/events?last=${last}` : "v1/events";
        const response = await this.#fetch(path, headers, control.signal);
        state(true);
        const parser = new EventParser();
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        for (;;) {
          const { value, done } = await reader.read();
          if (done) break;
          wait();
          pause = 500;
          const events = parser.feed(value);
          for (const { id, kind, data } of events) {
            if (kind === "reset") place = null;
            if (id) place = id;
            take(kind, JSON.parse(data));
          }
        }
      } catch (error) {
        if (error instanceof NoToken) {
          clearTimeout(silent);
          state(false);
          throw error;
        }
        // The place is none that this daemon knows: all that is kept is read again.
        if (error instanceof Refused && error.status === 422) place = null;
      }
      clearTimeout(silent);
      state(false);
      // Not all pages at once after a restart of the daemon.
      await new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random() / 2)));
      pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
    }
  }
}

/** Reads server-sent events (WHATWG HTML, section 9.2) from pieces of text. */
export class EventParser {
  #rest = "";
  #id = null;
  #kind = "";
  #data = [];

  /** The events that a piece of text ends. */
  feed(text) {
    const events = [];
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      const whole = line.endsWith("\r") ? line.slice(0, -1) : line;
      if (whole === "") {
        if (this.#data.length > 0) {
          events.push({ id: this.#id, kind: this.#kind || "message", data: this.#data.join("\n") });
        }
        this.#kind = "";
        this.#data = [];
        continue;
      }
      const colon = whole.indexOf(":");
      // A comment keeps the connection alive.
      if (colon === 0) continue;
      const field = colon < 0 ? whole : whole.slice(0, colon);
      const value = colon < 0 ? "" : whole.slice(colon + 1).replace(/^ /, "");
      if (field === "data") this.#data.push(value);
      else if (field === "event") this.#kind = value;
      else if (field === "id") this.#id = value;
    }
    return events;
  }
}
