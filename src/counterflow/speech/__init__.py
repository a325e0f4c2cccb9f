"""Speech through an alignment: linked predictive neural networks.

Source: Tebelskis, Waibel, Petek, Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural Networks",
NIPS 1990.
"""

from counterflow.speech import methods as _methods  # noqa: F401 - enters it in the registry
from counterflow.speech.acoustics import ModelKind
from counterflow.speech.alignment import best_path, follow, path_error
from counterflow.speech.answers import Alternative, Segment, Word, segments
from counterflow.speech.boundaries import BoundaryError, boundary_error
from counterflow.speech.classifier import StateClassifier
from counterflow.speech.combined import CombinedStates
from counterflow.speech.contexts import bare_phone, cases_of, in_context, own_phones
from counterflow.speech.corrective import train_corrective
from counterflow.speech.decoding import Decoder, DecoderStream, Hypothesis, WordSpan
from counterflow.speech.durations import Durations, rescore
from counterflow.speech.gaussians import GaussianStates, add_deltas
from counterflow.speech.grammar import Grammar
from counterflow.speech.lexicon import SILENCE, Lexicon, Linkage, OutOfVocabulary, Phoneme
from counterflow.speech.nbest import n_best
from counterflow.speech.plot import plot_predictions
from counterflow.speech.predictors import Kind, PredictorBank
from counterflow.speech.recognizer import Recognizer
from counterflow.speech.streaming import RecognizerStream
from counterflow.speech.training import (
    Discrimination,
    discrimination,
    flat_start,
    train_classifier,
    train_gaussians,
    train_predictors,
)

__all__ = [
    "SILENCE",
    "Alternative",
    "BoundaryError",
    "CombinedStates",
    "Decoder",
    "DecoderStream",
    "Discrimination",
    "Durations",
    "GaussianStates",
    "Grammar",
    "Hypothesis",
    "Kind",
    "Lexicon",
    "Linkage",
    "ModelKind",
    "OutOfVocabulary",
    "Phoneme",
    "PredictorBank",
    "Recognizer",
    "RecognizerStream",
    "Segment",
    "StateClassifier",
    "Word",
    "WordSpan",
    "add_deltas",
    "bare_phone",
    "best_path",
    "boundary_error",
    "cases_of",
    "discrimination",
    "flat_start",
    "follow",
    "in_context",
    "n_best",
    "own_phones",
    "path_error",
    "plot_predictions",
    "rescore",
    "segments",
    "train_classifier",
    "train_corrective",
    "train_gaussians",
    "train_predictors",
]
