"""The tiny base recipe."""

from study_base import base as base
