// The page of a served run. Titles come from data: they are only ever set as text, never as markup.

const SEARCH_AFTER_MS = 120;
const byId = (id) => document.getElementById(id);
const state = { history: [], candidates: [], taken: null, row: 0, asked: 0, explained: 0, last: null };

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

async function busy(text, work) {
  const buttons = document.querySelectorAll(".buttons button");
  buttons.forEach((b) => (b.disabled = true));
  say(text);
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  } finally {
    buttons.forEach((b) => (b.disabled = false));
  }
}

// Choosing titles: a combobox with a list of what was found, as the ARIA practices describe it.

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
        option.addEventListener("click", () => take(i));
        return option;
      }),
    );
    list.hidden = found.length === 0;
    input.setAttribute("aria-expanded", String(found.length > 0));
    if (found.length > 0) return mark(0);
    mark(-1);
    say(`No title like “${input.value}”.`);
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

  function take(index) {
    state[name].push(found[index]);
    input.value = "";
    close();
    draw(name);
    say(`${found[index].title} is added to the ${name}.`);
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
      event.preventDefault(); // while a title is being looked for, Enter does not rank
      if (open && active >= 0) take(active);
    } else if (event.key === "Escape") {
      close();
    } else if (event.key === "Backspace" && input.value === "" && state[name].length > 0) {
      say(`${state[name].pop().title} is removed from the ${name}.`);
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
        say(`${item.title} is removed from the ${name}.`);
        (list.querySelectorAll("button")[Math.max(0, i - 1)] ?? byId(`${name}-input`)).focus();
      });
      const taken = name === "candidates" && item.item_id === state.taken;
      return element("li", { className: taken ? "taken" : "" }, element("span", { text: item.title }), remove);
    }),
  );
}

// Two rankings, side by side.

const number = (value, digits) => value.toFixed(digits).replace("-", "−");
const signed = (value) => (value >= 0 ? "+" : "") + number(value, 2);
const percent = (share) => (share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share >= 0.9995 ? 0 : 1)}%`);
const ids = (items) => items.map(({ item_id }) => ({ item_id }));
const rankerOf = (side) => byId(side).querySelector("select").value;
const nameOf = (side) => byId(side).querySelector("select").selectedOptions[0].text;

function bar(share) {
  const filled = element("i");
  filled.style.width = `${Math.max(0.5, 100 * share)}%`;
  return element("div", { className: "bar", "aria-hidden": "true" }, filled);
}

function moved(place, before) {
  if (before === undefined || before === place) return [];
  const steps = Math.abs(before - place);
  const up = place < before;
  const words = `${steps} ${steps === 1 ? "place" : "places"} ${up ? "higher" : "lower"} than under ${nameOf("left")}`;
  return [element("span", { className: `move ${up ? "up" : "down"}`, text: `${up ? "▲" : "▼"} ${steps}`, title: words, role: "img", "aria-label": words })];
}

function drawRanking(side, answer, others) {
  const places = new Map(others.map((line) => [line.item_id, line.rank]));
  const lines = answer.ranking.map((line) => {
    const title = element("button", { text: line.title, type: "button" });
    title.addEventListener("click", () => explain(line));
    const taken = line.item_id === state.taken;
    const moves = side === "right" ? moved(line.rank, places.get(line.item_id)) : [];
    return element(
      "li",
      { className: taken ? "taken" : "" },
      element("span", { className: "place", text: `${line.rank}.` }),
      element("span", {}, title, ...(taken ? [element("small", { text: " ◆ taken next" })] : []), ...moves),
      element("span", { className: "logp", text: number(line.logp, 2), title: "log-probability of the title" }),
      element("span", { className: "share", text: percent(line.probability) }),
      bar(line.probability),
    );
  });
  byId(side).querySelector(".ranking").replaceChildren(...lines);
}

async function rank(path, question) {
  const turn = ++state.asked;
  state.last = { path, question };
  byId("why").hidden = true;
  await busy("Ranking …", async () => {
    const ask = (side) => call(path, { ...question, ranker: rankerOf(side) });
    const [left, right] = await Promise.all([ask("left"), ask("right")]);
    if (turn !== state.asked) return;
    drawRanking("left", left, []);
    drawRanking("right", right, left.ranking);
    const shortened = left.history_shortened ? " The oldest titles of the history did not fit into the prompt." : "";
    byId("results-note").textContent =
      "Percentages are shares among the titles of the list; beside them the log-probability. A title shows why it stands where it does." + shortened;
    say(`${left.ranking.length} titles ranked. First: ${left.ranking[0]?.title ?? "none"} (${nameOf("left")}), ${right.ranking[0]?.title ?? "none"} (${nameOf("right")}).`);
  });
}

// Why: the history without each of its titles.

function drawReasons(side, answer, widest) {
  const place = byId(`why-${side}`);
  place.querySelector("h3").textContent = nameOf(side);
  place.querySelector("p").textContent = `log-probability ${number(answer.logp, 2)}`;
  const lines = answer.influences.map((influence) => {
    const change = influence.logp_change;
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
  place.querySelector(".reasons").replaceChildren(...lines);
}

async function explain(line) {
  if (state.last.question.history.length === 0) return say("Without a history there is nothing to leave out.", true);
  const turn = ++state.explained;
  const { history, candidates = [] } = state.last.question; // a recommendation shows none in the prompt
  const question = { history, candidates, target: { item_id: line.item_id } };
  await busy("Asking again without each title of the history …", async () => {
    const ask = (side) => call("/v1/explain", { ...question, ranker: rankerOf(side) });
    const [left, right] = await Promise.all([ask("left"), ask("right")]);
    if (turn !== state.explained) return;
    const changes = [left, right].flatMap((a) => a.influences.map((i) => Math.abs(i.logp_change)));
    const widest = Math.max(1e-9, ...changes);
    byId("why-title").textContent = `Why “${line.title}”?`;
    drawReasons("left", left, widest);
    drawReasons("right", right, widest);
    byId("why").hidden = false;
    byId("why").focus({ preventScroll: true });
    byId("why").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    say(`Why ${line.title}: shown below the ranking.`);
  });
}

// Buttons.

function rankCandidates() {
  if (state.candidates.length === 0) {
    say("Choose at least one candidate, or show an example.", true);
    return byId("candidates-input").focus();
  }
  return rank("/v1/rank", { history: ids(state.history), candidates: ids(state.candidates) });
}

byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  rankCandidates();
});
byId("recommend").addEventListener("click", () => rank("/v1/recommend", { history: ids(state.history), k: 10 }));
byId("clear").addEventListener("click", () => {
  Object.assign(state, { history: [], candidates: [], taken: null, last: null });
  state.asked++;
  draw("history");
  draw("candidates");
  document.querySelectorAll(".ranking").forEach((list) => list.replaceChildren());
  byId("why").hidden = true;
  say("Cleared.");
  byId("history-input").focus();
});
byId("example").addEventListener("click", () =>
  busy("Fetching an example …", async () => {
    const example = await call(`/v1/example?row=${state.row}`);
    state.row = (example.row + 1) % example.rows;
    Object.assign(state, { history: example.history, candidates: example.candidates, taken: example.target.item_id });
    draw("history");
    draw("candidates");
    await rankCandidates();
  }),
);
for (const side of ["left", "right"]) {
  byId(side).querySelector("select").addEventListener("change", () => state.last && rank(state.last.path, state.last.question));
}
picker("history");
picker("candidates");
