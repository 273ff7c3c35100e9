// The page of a served run. Titles come from data, so they are only set as text, never as markup.

const SEARCH_AFTER_MS = 120;
const SIDES = ["left", "right"];
const byId = (id) => document.getElementById(id);
// `request` is the request to repeat with another ranker, `shown` the request whose rankings are on the page.
const state = { history: [], candidates: [], target: null, row: 0, turn: 0, busy: null, request: null, shown: null };

function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function say(text, bad = false) {
  const status = byId("status");
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

async function call(path, body, signal) {
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

function setBusy(section) {
  state.busy = section;
  if (section === null) byId("progress").hidden = true;
  for (const id of ["results", "why"]) byId(id).setAttribute("aria-busy", String(id === section));
  // A disabled button would lose the focus.
  for (const button of document.querySelectorAll(".buttons button:not(#clear)")) button.setAttribute("aria-disabled", String(section !== null));
}

// Only the newest request counts: answers and errors of older ones are not shown.
async function busy(text, section, work) {
  const turn = ++state.turn;
  const newest = () => turn === state.turn;
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
    state.request = state.shown;
    if (state.shown) SIDES.forEach((side) => (selectOf(side).value = state.shown.rankers[side].ranker)); // of the rankings shown
  } finally {
    clearInterval(clock);
    if (newest()) setBusy(null);
  }
}

// Choosing titles: a combobox with a listbox of matches, after the ARIA practices.

function picker(name) {
  const input = byId(`${name}-input`);
  const list = byId(`${name}-options`);
  let found = [];
  let active = -1;
  let timer = 0;
  let running = null;

  function close() {
    clearTimeout(timer);
    running?.abort();
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(index) {
    active = index;
    [...list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === index)));
    if (index < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", list.children[index].id);
    list.children[index].scrollIntoView({ block: "nearest" });
  }

  function show(items) {
    found = items.filter((item) => !state[name].some((chosen) => chosen.item_id === item.item_id));
    list.replaceChildren(
      ...found.map((item, i) => {
        const option = element("li", { text: item.title, role: "option", id: `${name}-option-${i}` });
        option.addEventListener("mousedown", (event) => event.preventDefault());
        option.addEventListener("click", () => add(i));
        return option;
      }),
    );
    list.hidden = found.length === 0;
    input.setAttribute("aria-expanded", String(found.length > 0));
    if (found.length > 0) return mark(0);
    mark(-1);
    say(`No title matches “${input.value}”.`);
  }

  async function search() {
    running?.abort();
    running = new AbortController();
    try {
      const query = encodeURIComponent(input.value);
      show((await call(`/v1/items?limit=8&query=${query}`, undefined, running.signal)).items);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message, true);
    }
  }

  function add(index) {
    state[name].push(found[index]);
    input.value = "";
    close();
    draw(name);
    say(`Added ${found[index].title} to the ${name}.`);
    input.focus();
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    if (input.value.trim() === "") return close();
    timer = setTimeout(search, SEARCH_AFTER_MS);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const open = !list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) return search();
      const step = event.key === "ArrowDown" ? 1 : -1;
      mark((active + step + found.length) % found.length);
    } else if (event.key === "Enter" && (open || input.value.trim() !== "")) {
      event.preventDefault(); // during a search, Enter does not submit the form
      if (open && active >= 0) add(active);
    } else if (event.key === "Escape") {
      close();
    } else if (event.key === "Backspace" && input.value === "" && state[name].length > 0) {
      say(`Removed ${state[name].pop().title} from the ${name}.`);
      draw(name);
    }
  });
}

function draw(name) {
  const list = byId(name).querySelector(".chosen");
  list.replaceChildren(
    ...state[name].map((item, i) => {
      const remove = element("button", { text: "×", type: "button", "aria-label": `Remove ${item.title}` });
      remove.addEventListener("click", () => {
        state[name].splice(i, 1);
        draw(name);
        say(`Removed ${item.title} from the ${name}.`);
        (list.querySelectorAll("button")[Math.max(0, i - 1)] ?? byId(`${name}-input`)).focus();
      });
      const target = name === "candidates" && item.item_id === state.target;
      return element("li", { className: target ? "target" : "" }, element("span", { text: item.title }), remove);
    }),
  );
}

// Two rankings, side by side.

const number = (value, digits) => value.toFixed(digits).replace("-", "−");
const signed = (value) => (value >= 0 ? "+" : "") + number(value, Math.abs(value) < 0.1 ? 4 : 2);
const percent = (share) => (share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share >= 0.9995 ? 0 : 1)}%`);
const ids = (items) => items.map(({ item_id }) => ({ item_id }));
const selectOf = (side) => byId(side).querySelector("select");
const rankerOf = (side) => {
  const chosen = selectOf(side).selectedOptions[0];
  return { ranker: chosen.value, label: chosen.text, isModel: "model" in chosen.dataset };
};
const score = (value, isModel) => (isModel ? value.toFixed(2) : Math.abs(value) < 1000 ? value.toPrecision(3) : value.toFixed(0)).replace("-", "−");

// Queries the rankers of these sides; `each` is called with every answer when it arrives.
function queryRankers(path, question, rankers, sides, newest, each = () => {}) {
  const bar = byId("progress").firstElementChild;
  bar.max = sides.length;
  let answered = 0;
  return Promise.all(
    sides.map(async (side) => {
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

async function rank({ path, question, target }) {
  const rankers = { left: rankerOf("left"), right: rankerOf("right") };
  const request = { path, question, target, rankers };
  state.request = request;
  byId("why").hidden = true;
  await busy(path === "/v1/recommend" ? "Scoring all titles …" : "Ranking …", "results", async (newest) => {
    const [left, right] = await queryRankers(path, question, rankers, SIDES, newest);
    if (!newest()) return;
    const inList = document.activeElement.closest(".ranking") !== null;
    request.history = question.user_id ? left.history : question.history;
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
  });
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
  if (state.busy === "results") return; // a new ranking is loading
  const { question, rankers, history } = state.shown;
  const { user_id, candidates = [] } = question; // prompts of recommendations show no candidates
  if (history.length === 0) return say("There is no history to explain.", true);
  await busy("Scoring without each title of the history …", "why", async (newest) => {
    const request = { ...(user_id && { user_id }), history: question.history, candidates, item: { item_id: line.item_id } };
    const answers = {};
    await queryRankers("/v1/explain", request, rankers, SIDES, newest, (side, answer) => (answers[side] = answer));
    if (!newest()) return;
    byId("why-title").textContent = `Why “${line.title}”?`;
    const left = Math.max(...SIDES.map((side) => answers[side].not_explained));
    byId("why-part").textContent = `The effects of the ${left} oldest titles of the history are not measured.`;
    byId("why-part").hidden = left === 0;
    SIDES.forEach((side) => drawReasons(side, rankers[side], answers[side]));
    byId("why").hidden = false;
    byId("why").focus({ preventScroll: true });
    byId("why").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    say(`The explanation of ${line.title} is below the ranking.`);
  });
}

function rules() {
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

// Users of the log whose ids begin with the typed text; the browser shows them.

async function suggestUsers() {
  const query = byId("user").value.trim();
  try {
    const { users } = await call(`/v1/users?limit=8&query=${encodeURIComponent(query)}`);
    if (query === byId("user").value.trim()) byId("users").replaceChildren(...users.map((user) => element("option", { value: user })));
  } catch (error) {
    say(error.message, true);
  }
}

for (const event of ["focus", "input"]) byId("user").addEventListener(event, suggestUsers);

// Buttons.

function rankCandidates() {
  if (state.candidates.length === 0) {
    say("Choose at least one candidate, or show an example.", true);
    return byId("candidates-input").focus();
  }
  return rank({ path: "/v1/rank", question: { history: ids(state.history), candidates: ids(state.candidates) }, target: state.target });
}

byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.busy) return;
  const user = byId("user").value.trim();
  // A user's history is in the log; titles of an example are not added to it.
  const who = user ? { user_id: user, history: [] } : { history: ids(state.history) };
  rank({ path: "/v1/recommend", question: { ...who, k: 10, ...rules() }, target: user ? null : state.target });
});
byId("rank").addEventListener("click", () => {
  if (!state.busy) rankCandidates();
});
byId("clear").addEventListener("click", () => {
  Object.assign(state, { history: [], candidates: [], target: null, request: null, shown: null });
  state.turn++;
  setBusy(null);
  byId("user").value = "";
  draw("history");
  draw("candidates");
  document.querySelectorAll(".ranking").forEach((list) => list.replaceChildren());
  document.querySelectorAll(".tied").forEach((note) => (note.hidden = true));
  byId("results-note").textContent = "";
  byId("why").hidden = true;
  say("Cleared.");
  byId("history-input").focus();
});

function choose(example) {
  state.row = (example.row + 1) % example.rows;
  Object.assign(state, { history: example.history, candidates: example.candidates, target: example.target.item_id });
  draw("history");
  draw("candidates");
}

// An example to start with, unless something else has been chosen meanwhile.
async function begin() {
  const turn = state.turn;
  try {
    const example = await call("/v1/example?row=0");
    if (turn === state.turn && state.history.length + state.candidates.length === 0) choose(example);
  } catch (error) {
    if (!byId("key").hidden) say(error.message, true); // data without test examples
  }
}

byId("example").addEventListener("click", () => {
  if (state.busy) return;
  state.request = null; // a ranker chosen meanwhile applies to the example
  busy("Fetching an example …", "results", async (newest) => {
    const example = await call(`/v1/example?row=${state.row}`);
    if (!newest()) return;
    choose(example);
    await rankCandidates();
  });
});
// The left list stays with the default ranker, which is another one where seen titles are excluded.
byId("exclude-seen").addEventListener("change", ({ target }) => {
  const { default: usual, forNew } = target.dataset;
  const [before, now] = target.checked ? [usual, forNew] : [forNew, usual];
  if (selectOf("left").value === before) selectOf("left").value = now;
});
for (const side of SIDES) selectOf(side).addEventListener("change", () => state.request && rank(state.request));
picker("history");
picker("candidates");
begin();
