// The bench: two rankers side by side, for all titles or for candidates, and what each title of the history did.

import { byId, element, ids, number, scrollToShow, signed } from "./dom.js";
import { busy, call, isBusy, say } from "./calls.js";
import { combobox } from "./combobox.js";
import { chips, choose, drawPast, history, rules, who } from "./question.js";

const SIDES = ["left", "right"];
// `request` is the request to repeat with another ranker, `shown` the request whose rankings are on the page.
const state = { candidates: [], target: null, row: 0, request: null, shown: null };

const percent = (share) => (share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share >= 0.9995 ? 0 : 1)}%`);
const selectOf = (side) => byId(side).querySelector("select");
const rankerOf = (side) => {
  const chosen = selectOf(side).selectedOptions[0];
  return { ranker: chosen.value, label: chosen.text, isModel: "model" in chosen.dataset };
};
const score = (value, isModel) => (isModel ? value.toFixed(2) : Math.abs(value) < 1000 ? value.toPrecision(3) : value.toFixed(0)).replace("-", "−");

// Queries the rankers of both sides; `each` is called with every answer when it arrives.
function queryRankers(path, question, rankers, newest, each = () => {}) {
  const bar = byId("progress").firstElementChild;
  bar.max = SIDES.length;
  let answered = 0;
  return Promise.all(
    SIDES.map(async (side) => {
      const answer = await call(path, { ...question, ranker: rankers[side].ranker });
      if (!newest()) return answer;
      bar.value = ++answered;
      each(side, answer);
      return answer;
    }),
  );
}

function bar(share) {
  const filled = element("i");
  filled.style.width = `${Math.max(0.5, 100 * share)}%`;
  return element("div", { className: "bar", "aria-hidden": "true" }, filled);
}

function moved(rank, before, other) {
  if (before === undefined || before === rank) return [];
  const steps = Math.abs(before - rank);
  const up = rank < before;
  const words = `${steps} ${steps === 1 ? "position" : "positions"} ${up ? "higher" : "lower"} than under ${other}`;
  return [element("span", { className: `move ${up ? "up" : "down"}`, text: `${up ? "▲" : "▼"} ${steps}`, title: words, role: "img", "aria-label": words })];
}

function drawRanking(side, answer, others, { target: targetId, rankers }) {
  const ranks = new Map(others.map((line) => [line.item_id, line.rank]));
  const isModel = rankers[side].isModel && answer.ranking.every((line) => line.share !== null);
  const lines = answer.ranking.map((line) => {
    const title = element("button", { text: line.title, type: "button", title: "Why?" });
    title.addEventListener("click", () => explain(line));
    const target = line.item_id === targetId;
    const moves = side === "right" ? moved(line.rank, ranks.get(line.item_id), rankers.left.label) : [];
    return element(
      "li",
      { className: target ? "target" : "" },
      element("span", { className: "place", text: `${line.rank}.` }),
      element("span", {}, title, ...(target ? [element("small", { text: " ◆ chosen next" })] : []), ...moves),
      ...(isModel ? [element("span", { className: "share", text: percent(line.share) })] : []),
      element("span", { className: "logp", text: score(line.score, isModel), title: isModel ? "log-probability of the title" : "score" }),
      ...(isModel ? [bar(line.share)] : []),
    );
  });
  byId(side).querySelector(".ranking").replaceChildren(...lines);
  const scores = answer.ranking.map((line) => line.score);
  byId(side).querySelector(".tied").hidden = scores.length < 2 || Math.max(...scores) > Math.min(...scores);
}

// After an error, the page names the rankers of the rankings that it still shows.
function restore() {
  state.request = state.shown;
  if (state.shown) SIDES.forEach((side) => (selectOf(side).value = state.shown.rankers[side].ranker));
}

async function rank({ path, question, target }) {
  const rankers = { left: rankerOf("left"), right: rankerOf("right") };
  const request = { path, question, target, rankers };
  state.request = request;
  byId("why").hidden = true;
  const show = async (newest) => {
    const [left, right] = await queryRankers(path, question, rankers, newest);
    if (!newest()) return;
    const inList = document.activeElement.closest(".ranking") !== null;
    request.history = question.user_id ? left.history : question.history;
    if (question.user_id) drawPast(left.history);
    state.shown = request;
    drawRanking("left", left, [], request);
    drawRanking("right", right, left.ranking, request);
    if (inList) byId("results").focus({ preventScroll: true }); // the title that had the focus is gone
    const shortened = left.history_shortened || right.history_shortened ? "The oldest titles of the history did not fit into the prompt." : "";
    const other = left.ranker !== rankers.left.ranker ? left.ranker : right.ranker;
    const instead = other === rankers.right.ranker ? "" : `Without a history, items are ranked by ${other}.`;
    byId("results-note").textContent = shortened || instead;
    byId("legend").hidden = false;
    say(`${left.ranking.length} titles ranked. First: ${left.ranking[0]?.title ?? "none"} (${rankers.left.label}), ${right.ranking[0]?.title ?? "none"} (${rankers.right.label}).`);
  };
  await busy(path === "/v1/recommend" ? "Scoring all titles …" : "Ranking …", "results", show, restore);
}

// Explanation: what each title of the history adds to the score.

function drawReasons(side, { label, isModel }, answer) {
  const widest = Math.max(1e-9, ...answer.influences.map((influence) => Math.abs(influence.effect))); // scores have their own units
  const section = byId(`why-${side}`);
  section.querySelector("h3").textContent = label;
  section.querySelector("p").textContent = `${isModel ? "log-probability" : "score"} ${number(answer.score, 2)}`;
  const lines = answer.influences.map((influence) => {
    const change = influence.effect;
    const filled = element("i", { className: change >= 0 ? "for" : "against" });
    filled.style.width = `${(50 * Math.abs(change)) / widest}%`;
    return element(
      "li",
      {},
      element("span", { text: influence.title }),
      element("div", { className: "scale", "aria-hidden": "true" }, filled),
      element("span", { className: "amount", text: signed(change) }),
    );
  });
  section.querySelector(".reasons").replaceChildren(...lines);
}

async function explain(line) {
  if (isBusy() === "results") return; // a new ranking is loading
  const { question, rankers, history } = state.shown;
  const { user_id, candidates = [] } = question; // prompts of recommendations show no candidates
  if (history.length === 0) return say("There is no history to explain.", true);
  const show = async (newest) => {
    const request = { ...(user_id && { user_id }), history: question.history, candidates, item: { item_id: line.item_id } };
    const answers = {};
    await queryRankers("/v1/explain", request, rankers, newest, (side, answer) => (answers[side] = answer));
    if (!newest()) return;
    byId("why-title").textContent = `Why “${line.title}”?`;
    const left = Math.max(...SIDES.map((side) => answers[side].not_explained));
    byId("why-part").textContent = `The effects of the ${left} oldest titles of the history are not measured.`;
    byId("why-part").hidden = left === 0;
    SIDES.forEach((side) => drawReasons(side, rankers[side], answers[side]));
    byId("why").hidden = false;
    byId("why").focus({ preventScroll: true });
    scrollToShow(byId("why"));
    say(`The explanation of ${line.title} is below the ranking.`);
  };
  await busy("Scoring without each title of the history …", "why", show, restore);
}

// Candidates and examples.

function drawCandidates() {
  const list = byId("candidates").querySelector(".chosen");
  chips(list, state.candidates, removeCandidate, ({ item_id }) => item_id === state.target);
}

function removeCandidate(index) {
  const [gone] = state.candidates.splice(index, 1);
  drawCandidates();
  say(`Removed ${gone.title} from the candidates.`);
  (byId("candidates").querySelectorAll(".chosen button")[Math.max(0, index - 1)] ?? byId("candidates-input")).focus();
}

async function candidateMatches(text, signal) {
  const { items } = await call(`/v1/items?limit=8&query=${encodeURIComponent(text)}`, undefined, signal);
  return items.filter((item) => !state.candidates.some(({ item_id }) => item_id === item.item_id));
}

function addCandidate(item) {
  state.candidates.push(item);
  drawCandidates();
  say(`Added ${item.title} to the candidates.`);
}

async function rankCandidates() {
  if (state.candidates.length === 0) {
    say("Choose at least one candidate, or show an example.", true);
    return byId("candidates-input").focus();
  }
  return rank({ path: "/v1/rank", question: { history: ids(await history()), candidates: ids(state.candidates) }, target: state.target });
}

async function showExample(newest) {
  const example = await call(`/v1/example?row=${state.row}`);
  if (!newest()) return;
  state.row = (example.row + 1) % example.rows;
  Object.assign(state, { candidates: example.candidates, target: example.target.item_id });
  choose("", example.history);
  drawCandidates();
  await rankCandidates();
}

export function compare() {
  const asked = who();
  return rank({ path: "/v1/recommend", question: { ...asked, k: 10, ...rules(), show_history: true }, target: asked.user_id ? null : state.target });
}

export function clearBench() {
  Object.assign(state, { candidates: [], target: null, request: null, shown: null });
  drawCandidates();
  document.querySelectorAll(".ranking").forEach((list) => list.replaceChildren());
  document.querySelectorAll(".tied").forEach((note) => (note.hidden = true));
  byId("results-note").textContent = "";
  byId("why").hidden = true;
}

export function startBench() {
  combobox("candidates", {
    search: candidateMatches,
    choose: addCandidate,
    removeLast: () => state.candidates.length > 0 && removeCandidate(state.candidates.length - 1),
  });
  byId("compare").addEventListener("click", () => isBusy() || compare());
  byId("rank").addEventListener("click", () => isBusy() || rankCandidates());
  byId("example").addEventListener("click", () => {
    if (isBusy()) return;
    state.request = null; // a ranker chosen meanwhile applies to the example
    busy("Fetching an example …", "results", showExample);
  });
  // The left list stays with the default ranker, which is another one where seen titles are excluded.
  byId("exclude-seen").addEventListener("change", ({ target }) => {
    const { default: usual, forNew } = target.dataset;
    const [before, now] = target.checked ? [usual, forNew] : [forNew, usual];
    if (selectOf("left").value === before) selectOf("left").value = now;
  });
  for (const side of SIDES) selectOf(side).addEventListener("change", () => state.request && rank(state.request));
}
