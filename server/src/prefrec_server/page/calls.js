// Requests to the server, and what the page says about them.

import { byId } from "./dom.js";

let turn = 0;
let working = null;
const SECTIONS = ["answers", "results", "why"];

export function say(text, bad = false) {
  const status = byId("status");
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

export async function call(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = byId("key-input").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  const how = body === undefined ? { headers, signal } : { method: "POST", headers, signal, body: JSON.stringify(body) };
  const answer = await fetch(path, how);
  const value = await answer.json();
  if (answer.status === 401) byId("key").hidden = false;
  if (!answer.ok) throw new Error(value.error.message);
  return value;
}

// The section that waits for an answer, or null.
export const isBusy = () => working;

function setBusy(section) {
  working = section;
  if (section === null) byId("progress").hidden = true;
  for (const id of SECTIONS) byId(id).setAttribute("aria-busy", String(id === section));
  // A disabled button would lose the focus.
  for (const button of document.querySelectorAll("button[data-asks]")) button.setAttribute("aria-disabled", String(section !== null));
}

// Answers and errors of work that has begun before are not shown any more.
export function forgetWork() {
  turn++;
  setBusy(null);
}

// Only the newest work counts. `work` is called with a function that says whether it is; `failed` after an error.
export async function busy(text, section, work, failed = () => {}) {
  const own = ++turn;
  const newest = () => own === turn;
  setBusy(section);
  say(text);
  const [bar, time] = byId("progress").children;
  bar.removeAttribute("value");
  time.textContent = "";
  byId("progress").hidden = false;
  const since = Date.now();
  const clock = setInterval(() => newest() && (time.textContent = `${Math.round((Date.now() - since) / 1000)} s`), 1000);
  try {
    await work(newest);
  } catch (error) {
    if (!newest()) return;
    say(error.message, true);
    failed();
  } finally {
    clearInterval(clock);
    if (newest()) setBusy(null);
  }
}
