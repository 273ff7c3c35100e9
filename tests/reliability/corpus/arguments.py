"""Arguments of the command line: verbs and options that there are not, values that do not fit."""

# ruff: noqa: E501  # a case a line is a table that can be read

from typing import Any

from reliability.corpus.case import Case, command


def _typed(line: str, message: str, *more: str) -> Case:
    """A line as it is typed; RUN, DATA and OUT stand for the place's folders and one to write."""

    def give(place: Any, folder: Any) -> tuple[Any, ...]:
        names = {"RUN": place.run, "DATA": place.run / "data", "OUT": folder / "out", "MODEL": place.model}
        return tuple(names.get(word, word) for word in (*line.split(), *more))

    return command(f"prefrec {line} {' '.join(more)}".strip(), message, give)


CASES = [
    _typed("recomend", "No such command 'recomend'; did you mean recommend?"),
    _typed("sft DATA OUT --rows 8", "No such command 'sft'"),
    _typed("run", "RECIPE requires an argument"),
    _typed("run recipes/demo.yaml --untill sft", "Unknown option: --untill. Did you mean --until?"),
    _typed("run recipes/demo.yaml --until dinner --out OUT", "unknown stage 'dinner': expected one of prepare, sft"),
    _typed("prepare OUT --source movielens-csv", "path: source movielens-csv needs the folder of the data"),
    _typed("prepare OUT --source files", "interactions, items: source files needs a log and a catalogue"),
    _typed("prepare OUT --interactions log.csv --items items.csv", "interactions: name the source that uses it with --source, such as files"),
    _typed("prepare OUT --candidates.size many", "--candidates.size: Input should be a valid integer"),
    _typed("evaluate-adapters DATA --adapter sft", "--adapter 'sft': expected NAME=FOLDER, such as sft=runs/demo/sft/adapter"),
    _typed("evaluate-adapters DATA --adapter ../x=RUN", "--adapter '../x=RUN': expected NAME=FOLDER"),
    _typed("explain RUN", "give either --row, or --history or --user"),
    _typed("explain RUN --row 999", "row 999: the test split of"),
    _typed("explain RUN --user nobody", "name the item to explain with --item"),
    _typed("explain RUN --user nobody --item i1", "user 'nobody' is not in the run's log"),
    _typed("explain RUN --row 0 --split dev", "unknown split 'dev': expected train, validation or test"),
    _typed("explain RUN --row 0 --item Nothing", "no item with title or id 'Nothing'"),
    _typed("lab study", "no study named: expected one of"),
    _typed("lab study nonsense", "unknown study 'nonsense': expected one of"),
    _typed("lab study fairness --seeds a,b", "--seeds 'a,b': expected numbers with commas between them, such as 0,1"),
    _typed("lab study fairness --run RUN --set sft.rows=5", "--set cannot be combined with --run: an existing run has its own recipe"),
    _typed("lab bench --out OUT --negatives 3,1", "negatives: expected ascending numbers, each once, got [3, 1]"),
    _typed("lab bench --out OUT --methods magic", "methods: 'magic' is unknown; expected published, trl, separate, prefrec"),
    _typed("serve RUN --port 99999", 'Invalid value "99999" for --port. Must be <= 65535.'),
    _typed("serve RUN --host 999.0.0.1", "cannot listen at 999.0.0.1, port 8000"),
    _typed("serve RUN --ranker none", "no trained model 'none'"),
]  # fmt: skip
