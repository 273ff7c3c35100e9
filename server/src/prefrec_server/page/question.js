// Who is asked about: a customer of the log, or titles; and the filters. Both views of the page answer this question.

import { byId, element, ids } from "./dom.js";
import { call, say } from "./calls.js";
import { combobox } from "./combobox.js";

const LAST = 5;
const MOST = 200; // titles of a history in a request
const chosen = { user: "", titles: [], past: null }; // past: the customer's history, once an answer has told it
let changed = () => {};

// The listener is called after each change of customer, titles or filters.
export function onChange(listener) {
  changed = listener;
}

export const titles = () => chosen.titles;

// The titles before the candidates of a ranking, which names no customer.
export async function history() {
  if (!chosen.user) return chosen.titles;
  if (chosen.past === null) drawPast((await call("/v1/recommend", { user_id: chosen.user, k: 1, show_history: true })).history);
  return chosen.past.slice(-MOST);
}

// The part of a request that says who is asked about. A customer's history is in the log.
export const who = () => (chosen.user ? { user_id: chosen.user, history: [] } : { history: ids(chosen.titles) });

export function choose(user, items) {
  Object.assign(chosen, { user, titles: items, past: null });
  drawChosen();
}

export function rules() {
  const where = byId("where").value.trim();
  const most = byId("at-most")?.value;
  const boosted = byId("boost-value").value.trim();
  const boost = { [byId("boost-column").value]: { [boosted]: Number(byId("boost-factor").value) } };
  return {
    exclude_seen: byId("exclude-seen").checked,
    ...(where && { where }),
    ...(most && { at_most: Number(most), per: byId("per").value }),
    ...(boosted && { boost }),
  };
}

// Folds a customer's history to the last titles, newest first; opened, it shows all.
export function drawPast(history) {
  chosen.past = history;
  foldPast(history);
}

function foldPast(history) {
  const last = history.slice(-LAST).reverse();
  byId("past").hidden = history.length === 0;
  byId("past").querySelector("summary").replaceChildren(
    element("b", { text: history.length > LAST ? `Last ${LAST}: ` : "History: " }),
    last.map((item) => item.title).join(" · "),
  );
  byId("past").querySelector("ol").replaceChildren(...history.toReversed().map((item) => element("li", { text: item.title })));
}

export function chips(list, items, remove, marked = () => false) {
  list.replaceChildren(
    ...items.map((item, i) => {
      const button = element("button", { text: "×", type: "button", "aria-label": `Remove ${item.title}` });
      button.addEventListener("click", () => remove(i));
      return element("li", { className: marked(item) ? "target" : "" }, element("span", { text: item.title }), button);
    }),
  );
}

function drawChosen() {
  byId("customer").hidden = !chosen.user;
  byId("customer").querySelector("b").textContent = chosen.user;
  byId("titles").hidden = chosen.titles.length === 0;
  chips(byId("titles"), chosen.titles, remove);
  foldPast([]);
}

function remove(index) {
  const [gone] = chosen.titles.splice(index, 1);
  drawChosen();
  say(`Removed ${gone.title}.`);
  (byId("titles").querySelectorAll("button")[Math.max(0, index - 1)] ?? byId("who-input")).focus();
  changed();
}

async function matches(text, signal) {
  const query = encodeURIComponent(text.trim());
  const [{ users }, { items }] = await Promise.all([
    call(`/v1/users?limit=4&query=${query}`, undefined, signal),
    call(`/v1/items?limit=8&query=${query}`, undefined, signal),
  ]);
  const fresh = items.filter((item) => !chosen.titles.some(({ item_id }) => item_id === item.item_id));
  return [...users.map((user) => ({ user, title: user, kind: "customer" })), ...fresh];
}

function take(match) {
  if (match.user !== undefined) choose(match.user, []);
  else choose("", [...chosen.titles, match]);
  changed();
}

export function startQuestion() {
  combobox("who", {
    search: matches,
    choose: take,
    removeLast: () => (chosen.titles.length > 0 ? remove(chosen.titles.length - 1) : chosen.user && take({ user: "" })),
  });
  for (const field of byId("rules").querySelectorAll("input, select")) field.addEventListener("change", () => changed());
}
