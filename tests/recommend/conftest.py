"""A language model as a ranker."""

from lm_rankers import lm_of as lm_of
