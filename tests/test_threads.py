"""A recommender that several threads ask: each gets what one thread alone gets, also if all of them come first."""

import asyncio
import multiprocessing
import sys

import pytest

from prefrec import Recommender
from prefrec.errors import ConfigError
from reliability.threads import KINDS, THREADS, ask_together, opener, questions_of


@pytest.fixture(scope="module", params=KINDS)
def opened(request, tmp_path_factory, bpe_tokenizer):
    """A function that opens a new recommender, whose model is not loaded."""
    return opener(request.param, tmp_path_factory.mktemp("threads"), bpe_tokenizer)


@pytest.fixture(scope="module")
def questions(opened):
    return questions_of(opened())


@pytest.fixture(scope="module")
def want(opened, questions):
    rec = opened()
    return [ask(rec) for ask in questions]


def test_threads_get_what_one_thread_gets(opened, questions, want):
    answers = ask_together(opened(), questions)
    assert len(answers) == THREADS * len(questions)
    assert [i for i, answer in answers if answer != want[i]] == []


def test_asyncio_may_hand_questions_to_threads(opened, questions, want):
    rec = opened()

    async def predict_all():
        return await asyncio.gather(*(asyncio.to_thread(ask, rec) for ask in questions))

    assert asyncio.run(predict_all()) == want


def in_fork(child):
    """Return what a function returns in a forked process, which must end well within 30 seconds."""
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    process = context.Process(target=lambda: told.put(child()))
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0
    return told.get()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_answers_or_says_why_not(opened, questions, want):
    """In a fork polars would wait forever for threads that are not there."""
    rec = opened()
    assert [ask(rec) for ask in questions[:3]] == want[:3]

    def child():
        for ask in (questions[0], Recommender.recommend_all, lambda rec: rec.recommend(user="u01")):
            with pytest.raises(ConfigError, match="get_context\\('spawn'\\)"):
                ask(rec)
        return questions[1](rec) == want[1]

    assert in_fork(child)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_before_the_first_query_says_why_it_cannot_answer(opened, questions):
    rec = opened()

    def child():
        for ask in questions:
            with pytest.raises(ConfigError, match="get_context\\('spawn'\\)"):
                ask(rec)
        return True

    assert in_fork(child)
