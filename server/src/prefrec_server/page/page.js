// The page of a served run: one question, answered in two views.

import { byId } from "./dom.js";
import { forgetWork, isBusy, say } from "./calls.js";
import { choose, onChange, startQuestion } from "./question.js";
import { clearAnswers, isCurrent, recommend } from "./answers.js";
import { clearBench, compare, startBench } from "./bench.js";

const VIEWS = ["answers", "bench"];
let view = "answers";

function show(name) {
  view = name;
  for (const other of VIEWS) {
    const isShown = other === name;
    byId(other).hidden = !isShown;
    byId(`tab-${other}`).setAttribute("aria-selected", String(isShown));
    byId(`tab-${other}`).tabIndex = isShown ? 0 : -1;
  }
}

const ask = () => (view === "answers" ? recommend() : compare());

for (const name of VIEWS) {
  const tab = byId(`tab-${name}`);
  tab.addEventListener("click", () => {
    show(name);
    if (name === "answers" && !isCurrent()) ask();
  });
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const other = VIEWS.find((each) => each !== name);
    byId(`tab-${other}`).focus();
    byId(`tab-${other}`).click();
  });
}

byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!isBusy()) ask();
});
byId("clear").addEventListener("click", () => {
  forgetWork();
  choose("", []);
  clearAnswers();
  clearBench();
  say("Cleared.");
  byId("who-input").focus();
  if (view === "answers") ask();
});
onChange(() => view === "answers" && ask());
startQuestion();
startBench();
recommend();
