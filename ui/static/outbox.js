// Presses on their way to the server, in order. Each is kept in localStorage under a key of its own until the server
// has confirmed it, and is sent again under the same client_uuid: a lost response can neither lose a label nor make two.

const RETRY_MS = [300, 1000, 2000, 4000, 8000];
const GIVE_UP_MS = 20000; // for one request; then it is sent again

export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** One request. Returns {status, body}; status 0: there is no response that can be read. */
export async function request(path, body) {
  try {
    const response = await fetch(`/api/v1/${path}`, {
      method: body ? "POST" : "GET",
      headers: body && { "Content-Type": "application/json" },
      body: body && JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(GIVE_UP_MS),
    });
    return { status: response.status, body: await response.json() };
  } catch {
    return { status: 0, body: null };
  }
}

export class Outbox {
  /** of: the campaign and the person. under: the part of the API. onReply(entry, status, body) returns whether the
   *  entry is settled (false: keep it, and stop sending until resume()). onGone(entry): another window of this person
   *  sent it or took it back. onChange() is called whenever `entries` or `failing` changed. */
  constructor(of, { under, onReply, onGone, onChange }) {
    this.prefix = `trueup/outbox/${of}/`;
    Object.assign(this, {
      under,
      onReply,
      onGone,
      onChange,
      entries: [],
      failing: false,
      stopped: false,
      running: false,
    });
    this.stored = true; // false: this browser keeps nothing, so that closing the page would lose what waits
    this.number = 0;
    this.adopt();
    addEventListener("online", () => this.wake?.());
  }

  /** Take over the entries that an earlier page of this person left. */
  adopt() {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(this.prefix));
    for (const key of keys.sort()) this.entries.push({ ...JSON.parse(localStorage[key]), key });
  }

  /** Send `body` to `path`; `name` is its text for people. */
  add(path, body, name) {
    // Keys sort in the order of the presses, over reloads too.
    const order = `${String(Date.now()).padStart(15, "0")}-${String(this.number++).padStart(6, "0")}`;
    const entry = { path, body: { client_uuid: uuid(), ...body }, name, tried: false };
    entry.key = `${this.prefix}${order}-${entry.body.client_uuid}`;
    this.entries.push(entry);
    this.store(entry);
    this.onChange();
    this.resume();
  }

  /** Remove the last label and return it; null if the server may have it. */
  takeBack() {
    const at = this.entries.findLastIndex((entry) => entry.path === "labels");
    const entry = this.entries[at];
    if (!entry || entry.tried || this.isGone(entry) || this.isTriedElsewhere(entry)) return null;
    this.entries.splice(at, 1);
    localStorage.removeItem(entry.key);
    this.onChange();
    return entry;
  }

  /** Whether another window sent the entry or took it back, and so removed its key: it must not be sent from here. */
  isGone(entry) {
    return this.stored && !(entry.key in localStorage);
  }

  isTriedElsewhere(entry) {
    return this.stored && JSON.parse(localStorage[entry.key]).tried;
  }

  get labels() {
    return this.entries.filter((entry) => entry.path === "labels");
  }

  resume() {
    this.stopped = false;
    this.wake?.();
    if (!this.running) this.send();
  }

  async send() {
    this.running = true;
    for (let failures = 0; this.entries.length && !this.stopped; ) {
      const entry = this.entries[0];
      if (this.isGone(entry)) {
        this.entries.shift();
        this.failing = false;
        this.onGone(entry);
        this.onChange();
        continue;
      }
      entry.tried = true; // from now on the server may have it
      this.store(entry);
      const { status, body } = await request(this.under + entry.path, entry.body);
      if ([200, 401, 409, 422].includes(status)) {
        failures = 0;
        this.failing = false;
        this.entries.shift();
        if (this.onReply(entry, status, body)) localStorage.removeItem(entry.key);
        else {
          this.entries.unshift(entry);
          this.stopped = true;
        }
        this.onChange();
      } else {
        this.failing = status || true;
        this.onChange();
        await this.pause(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
      }
    }
    this.running = false;
  }

  pause(ms) {
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      this.wake = () => (clearTimeout(timer), done());
    }).finally(() => (this.wake = undefined));
  }

  store({ key, ...entry }) {
    try {
      localStorage[key] = JSON.stringify(entry);
    } catch {
      this.stored = false;
    }
  }
}
