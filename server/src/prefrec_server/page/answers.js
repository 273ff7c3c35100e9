// The view that answers: ten items with what moved each, and what a clicked item is like.

import { byId, element, scrollToShow, signed } from "./dom.js";
import { busy, call, say } from "./calls.js";
import { drawPast, rules, titles, who } from "./question.js";

const SHOWN = 10;
const RELATED = 5;
const NAMED = 2;
const words = byId("answers").dataset;
const TOGETHER = new Set(JSON.parse(words.together));
const TITLES = new Set(JSON.parse(words.titles));
const MODELS = new Set(JSON.parse(words.models));
let shown = null; // the request, its answer, and item id → explanation
let explaining = null;

const asks = () => ({ ...who(), ...rules(), k: SHOWN, show_history: true });

// True if the answers on the page are those to the question on the page.
export const isCurrent = () => JSON.stringify(asks()) === JSON.stringify(shown?.question);

export async function recommend() {
  explaining?.abort();
  const question = asks();
  await busy("Looking for the best titles …", "answers", async (newest) => {
    const answer = await call("/v1/recommend", question);
    if (!newest()) return;
    const isEmpty = answer.history.length === 0;
    shown = { question, answer, isEmpty, reasons: new Map() };
    byId("best").replaceChildren(...answer.ranking.map(line));
    byId("best-note").textContent = `Ranked by ${answer.ranker}${isEmpty ? ", because there is no history" : ""}.`;
    closeItem();
    if (question.user_id) drawPast(answer.history);
    say(answer.ranking.length === 0 ? "The filters leave nothing to recommend." : `${answer.ranking.length} titles recommended.`);
    const [only, ...others] = titles();
    if (only && others.length === 0) openItem(only);
    explainAll();
  });
}

function line({ item_id, title }) {
  const open = element("button", { text: title, type: "button", title });
  open.addEventListener("click", () => openItem({ item_id, title }, true));
  const reason = shown.isEmpty ? "popular now" : "";
  return element("li", { "data-item": item_id }, open, element("small", { className: "reason", text: reason }));
}

// One after the other, so that other clients of the server are answered in between.
async function explainAll() {
  const { answer, isEmpty } = shown;
  if (isEmpty || MODELS.has(answer.ranker)) return; // a language model takes seconds for each
  explaining = new AbortController();
  const { signal } = explaining;
  try {
    for (const { item_id } of answer.ranking) drawReason(item_id, await explained(item_id, signal));
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

async function explained(item_id, signal) {
  const { question, answer, reasons } = shown;
  if (!reasons.has(item_id)) {
    const { user_id, history } = question;
    const request = { ...(user_id && { user_id }), history, item: { item_id }, ranker: answer.ranker };
    reasons.set(item_id, await call("/v1/explain", request, signal));
  }
  return reasons.get(item_id);
}

const raising = ({ influences }) => influences.filter(({ effect }) => effect > 0).sort((a, b) => b.effect - a.effect);
const quoted = (items) => items.map(({ title }) => title).join(" · ");

// What the strongest titles of the history did, by the kind of a blend's parts through which they did most.
function reasonOf(explanation) {
  const strongest = raising(explanation).slice(0, NAMED);
  if (strongest.length === 0) return "no title of the history raises its score";
  const effects = { together: 0, titles: 0, others: 0 };
  for (const { parts, effect } of strongest) {
    const named = Object.keys(parts).length > 0 ? parts : { [explanation.ranker]: effect };
    for (const [part, share] of Object.entries(named)) effects[TOGETHER.has(part) ? "together" : TITLES.has(part) ? "titles" : "others"] += share;
  }
  const [kind] = Object.entries(effects).sort((a, b) => b[1] - a[1])[0];
  const how = { together: `${words.verb} together with`, titles: "title like", others: "because of" }[kind];
  return `${how} ${quoted(strongest)}`;
}

function drawReason(item_id, explanation) {
  const place = [...byId("best").children].find((row) => row.dataset.item === item_id);
  const text = reasonOf(explanation);
  Object.assign(place.querySelector(".reason"), { textContent: text, title: text });
}

// The panel of an item: what it is like, what else its customers had, and what moved it.
async function openItem(item, isClicked = false) {
  const { question, isEmpty } = shown;
  const own = shown;
  const asked = { item: { item_id: item.item_id }, k: RELATED, ...byCatalogue() };
  const isRecommended = [...byId("best").children].some((row) => row.dataset.item === item.item_id);
  try {
    const [similar, beside, reasons] = await Promise.all([
      call("/v1/similar", asked),
      call("/v1/also-bought", asked),
      isEmpty || !isRecommended ? null : explained(item.item_id),
    ]);
    if (own !== shown) return;
    byId("item-title").textContent = item.title;
    drawRelated("similar", similar);
    drawRelated("beside", beside);
    byId("moved").hidden = reasons === null;
    if (reasons) drawMoved(item, reasons);
    for (const row of byId("best").children) row.classList.toggle("open", row.dataset.item === item.item_id);
    byId("item").hidden = false;
    byId("hint").hidden = true;
    if (!isClicked) return;
    byId("item").focus({ preventScroll: true });
    scrollToShow(byId("item"));
  } catch (error) {
    say(error.message, true);
  }
}

function closeItem() {
  byId("item").hidden = true;
  byId("hint").hidden = false;
}

// Filters that decide by the catalogue hold for related items as well.
function byCatalogue() {
  const { exclude_seen, ...others } = rules();
  return others;
}

function drawRelated(id, { by, items }) {
  byId(id).querySelector("ol").replaceChildren(
    ...items.map((item) => {
      const open = element("button", { text: item.title, type: "button" });
      open.addEventListener("click", () => openItem(item, true));
      return element("li", {}, open);
    }),
  );
  byId(id).querySelector("small").textContent = items.length === 0 ? "None." : `by ${by}`;
}

function drawMoved(item, reasons) {
  drawReason(item.item_id, reasons);
  const rows = raising(reasons).slice(0, RELATED);
  byId("moved").querySelector("ol").replaceChildren(
    ...rows.map(({ title, effect }) => element("li", {}, element("span", { text: title }), element("small", { text: ` ${signed(effect)}` }))),
  );
  byId("moved").querySelector("small").textContent = rows.length === 0 ? "No title of the history raises its score." : "effect on the score";
}

export function clearAnswers() {
  explaining?.abort();
  shown = null;
  byId("best").replaceChildren();
  byId("best-note").textContent = "";
  closeItem();
}
