"""Chat-REC: a recommender retrieves, a language model reorders, explains and talks.

Gao, Sheng, Xiang, Xiong, Wang and Zhang, *Chat-REC: Towards Interactive and Explainable LLMs-Augmented Recommender
System*, 2023 (arXiv 2303.14524).
"""

from prefrec_systems.chatrec.answer import Answer, read_answer
from prefrec_systems.chatrec.chat import ChatModel, EndpointChat, LocalChat
from prefrec_systems.chatrec.config import ChatRecConfig
from prefrec_systems.chatrec.profile import Profiles
from prefrec_systems.chatrec.ranker import ChatRecRanker
from prefrec_systems.chatrec.session import ChatSession, Reply

__all__ = [
    "Answer",
    "ChatModel",
    "ChatRecConfig",
    "ChatRecRanker",
    "ChatSession",
    "EndpointChat",
    "LocalChat",
    "Profiles",
    "Reply",
    "read_answer",
]
