"""Speech through an alignment: linked predictive neural networks.

Source: Tebelskis, Waibel, Petek, Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural Networks",
NIPS 1990.
"""

from counterflow.speech import methods as _methods  # noqa: F401 - enters it in the registry
from counterflow.speech.alignment import best_path, follow, path_error
from counterflow.speech.decoding import Decoder, DecoderStream, Hypothesis, WordSpan
from counterflow.speech.grammar import Grammar
from counterflow.speech.lexicon import SILENCE, Lexicon, Linkage, OutOfVocabulary, Phoneme
from counterflow.speech.predictors import Kind, PredictorBank

__all__ = [
    "SILENCE",
    "Decoder",
    "DecoderStream",
    "Grammar",
    "Hypothesis",
    "Kind",
    "Lexicon",
    "Linkage",
    "OutOfVocabulary",
    "Phoneme",
    "PredictorBank",
    "WordSpan",
    "best_path",
    "follow",
    "path_error",
]
