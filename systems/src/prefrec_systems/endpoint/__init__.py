"""A model behind an OpenAI-compatible server as a ranker."""

from prefrec_systems.endpoint.client import OpenAIClient
from prefrec_systems.endpoint.config import EndpointConfig, ServerSettings
from prefrec_systems.endpoint.ranker import EndpointRanker

__all__ = ["EndpointConfig", "EndpointRanker", "OpenAIClient", "ServerSettings"]
