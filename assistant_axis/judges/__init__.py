"""Who decides whether an answer is in role: one protocol, three judges, and how far two of them agree."""

from assistant_axis.judges.agreement import Agreement, agree
from assistant_axis.judges.api import APIJudge
from assistant_axis.judges.base import Judge, Judgement, Yield, read_scores, write_scores, yield_table
from assistant_axis.judges.endpoint import Endpoint, SpendEstimate
from assistant_axis.judges.likelihood import LikelihoodJudge
from assistant_axis.judges.local import ModelJudge
from assistant_axis.judges.rubric import RUBRIC_VERSION, parse_verdict, rubric_messages

__all__ = [
    "RUBRIC_VERSION",
    "APIJudge",
    "Agreement",
    "Endpoint",
    "Judge",
    "Judgement",
    "LikelihoodJudge",
    "ModelJudge",
    "SpendEstimate",
    "Yield",
    "agree",
    "parse_verdict",
    "read_scores",
    "rubric_messages",
    "write_scores",
    "yield_table",
]
