"""What stands above a table: good only without leak and fault, and never left out."""

from dataclasses import replace

import pytest

from prefrec.evaluation import FULL_RANKING, Audit, AuditRow, Evaluation, Interval, NoAudit

RANDOM = AuditRow("random", Interval(0.05, 0.05, 0.05, 500, 100))
RULE = AuditRow("target position", Interval(0.4, 0.3, 0.5, 500, 100), against="random")
CLEAN, LEAKING = Audit([RANDOM, RULE]), Audit([RANDOM, replace(RULE, leak=True)])
SOLVING = replace(RULE, name="item only", solves=True)
FAULTY = replace(CLEAN, faults=["examples that occur twice (2%)"])


@pytest.mark.parametrize(
    ("audit", "state", "headline"),
    [
        (CLEAN, "good", "Audit: no leak and no protocol error."),
        (LEAKING, "bad", "these candidate sets have leaks (target position)."),
        (Audit([RANDOM, SOLVING]), "solved", "these candidate sets can be solved without the user (item only)."),
        (
            Audit([RANDOM, SOLVING, replace(RULE, leak=True)]),
            "bad",
            "have leaks (target position) and can be solved without the user (item only).",
        ),
        (FAULTY, "bad", "protocol errors (examples that occur"),
        (replace(CLEAN, rows=[RANDOM, replace(RULE, tried=False)]), "", "Audit: incomplete, see the verdict."),
        (Audit([AuditRow("random", Interval(0.05, 0.05, 0.05, 50, 10))]), "", "Audit: incomplete"),
        (FULL_RANKING, "", "Not audited: full ranking"),
    ],
)
def test_state_and_headline(audit, state, headline):
    assert audit.state == state
    assert headline in audit.headline


def test_each_leak_has_a_reason_and_a_way_out():
    remedy = "Remedy: shuffle each candidate set (candidates.kind: uniform)."
    assert LEAKING.reasons == [f"The position of a target gives it away. {remedy}"]
    assert LEAKING.reasons[0] in LEAKING.verdict
    order = replace(RULE, name="id order (artist_id)", leak=True, share=0.9)
    assert "sort the log by time" in replace(CLEAN, rows=[RANDOM, order]).verdict
    assert "Ids follow the items' dates" in replace(CLEAN, rows=[RANDOM, replace(order, share=0.6)]).verdict


@pytest.mark.parametrize("found", [{"leak": True}, {"solves": True}])
def test_a_shortcut_that_the_verdict_does_not_know_has_a_reason(found):
    audit = Audit([RANDOM, replace(RULE, name="popularity of 30 days", **found)])
    assert "popularity of 30 days (HR@1 0.400, chance 0.050). A rule finds the targets" in audit.verdict
    assert "Remedy: use full ranking" in audit.verdict


def test_least_popular_first_is_explained_by_sampling_or_by_the_items():
    rarest = replace(RULE, name="least popular first")
    assert "because of how they are sampled" in Audit([RANDOM, replace(rarest, leak=True)]).verdict
    assert "users choose new or rare items" in Audit([RANDOM, replace(rarest, solves=True)]).verdict


def test_no_evaluation_without_a_verdict():
    with pytest.raises(TypeError, match="audit"):
        Evaluation({}, 1, 1, {}, [], 0.1)
    made = Evaluation({}, 1, 1, {}, [], 0.1, NoAudit("lists of a test"))
    value = made.to_json()
    assert next(iter(value.items())) == ("verdict", "Not audited: lists of a test.")
    assert Evaluation.from_json(value) == made
    assert Evaluation.from_json(replace(made, audit=CLEAN).to_json()).audit == CLEAN
