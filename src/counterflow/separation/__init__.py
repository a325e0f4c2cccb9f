r"""Separation: independent components of a recording, and a classifier's error that retunes them.

Bae, Lee, "Combining ICA and Top-Down Attention for Robust Speech Recognition", NIPS 2000.

============================  ==========================================================================================
the paper                     here
============================  ==========================================================================================
:math:`x`                     ``spectra``: what the microphones hear, behind `counterflow.audio.ShortTime`
:math:`u`                     the outputs of `FrequencyICA`; what `WordClassifier` sees are they at a microphone's scale
:math:`W`                     ``FrequencyICA.unmixing``, one matrix a frequency, behind ``FrequencyICA.whitening``
:math:`\varphi(z)` (4)        `score`, ``"cartesian"``
:math:`E_{mlp}` (1)           what `WordClassifier.fit` lowers, and whose gradient `attend` sends back
:math:`t_{mlp}, y_{mlp}`      1 for the classifier's own strongest output and -1 for others; its outputs
:math:`u_{target}, \Delta u`  the expected output and change: ``form="gradient"`` or ``form="inverse"`` of `attend`
:math:`\gamma` (2)            ``gamma``
equation 3                    one pass of `attend`
:math:`g, h` (figure 2)       `Microphones`
mel and linear conversion     `MelFrames`, and `MelFrames.expected_change` for the way back
============================  ==========================================================================================

Waves are (channels, samples), spectra (channels, frequencies, frames), and those of many words a list of such.
"""

from counterflow.separation import methods as _methods  # noqa: F401 - enters it in the registry
from counterflow.separation.attention import Attended, attend, choose_voice, confidence, recognize
from counterflow.separation.classifier import BipolarSigmoid, MelFrames, WordClassifier, pad_spectra
from counterflow.separation.demixing import minimal_distortion
from counterflow.separation.ica import FrequencyICA, score
from counterflow.separation.inversion import InverseMap
from counterflow.separation.iva import OnlineIVA, auxiliary_iva
from counterflow.separation.microphones import Microphones, saturation
from counterflow.separation.mixtures import ICAMixture
from counterflow.separation.permutation import align_envelopes
from counterflow.separation.separating import check_mixture, separate

__all__ = [
    "Attended",
    "BipolarSigmoid",
    "FrequencyICA",
    "ICAMixture",
    "InverseMap",
    "MelFrames",
    "Microphones",
    "OnlineIVA",
    "WordClassifier",
    "align_envelopes",
    "attend",
    "auxiliary_iva",
    "check_mixture",
    "choose_voice",
    "confidence",
    "minimal_distortion",
    "pad_spectra",
    "recognize",
    "saturation",
    "score",
    "separate",
]
