r"""Whitened layers: projected natural gradient descent (PRONG).

Desjardins, Simonyan, Pascanu, Kavukcuoglu, "Natural Neural Networks", NIPS 2015.

==========================  ====================================================================================
the paper                   here
==========================  ====================================================================================
:math:`h_{i-1}`             a layer's inputs; of a convolution, its channels, with pixels as samples (4.3)
:math:`c, \mu`              ``whiten_mean``, the mean of the inputs
:math:`\Sigma`              the inputs' covariance about c, or ``matrix="second-moment"`` (3.1)
:math:`U`                   ``whiten_basis``, rows by ascending eigenvalue (7); its :math:`U^TU` is ``whiten_metric``
:math:`V, d`                the whitened layer's parameters (6)
:math:`W, b`                the canonical ones, :math:`W = VU`, :math:`b = d - Wc` (algorithm 1, line 7)
:math:`D`                   ``diagonal=True`` (end of 3.2)
:math:`R`                   ``errors=...``, :math:`W = R^T V U` (footnote 4)
:math:`T, N_s, \epsilon`    ``every``, ``samples``, ``epsilon``
==========================  ====================================================================================

Inputs are (samples, n), weights (m, n); buffers have one more dimension in front, that of a convolution's groups.

One method in two forms:

* **canonical**, for `torch.optim.SGD`: parameters stay W and b, and an adjoint gives them the gradients by which they
  move as V and d would (`counterflow.whitening.canonical`). Forward pass and parameters are the bare model's. Gradient
  clipping sees the gradients of this form.
* **explicit**, for all other optimizers, and where weight and bias have different rates or decay: parameters hold V and
  d (`counterflow.whitening.explicit`), and what the optimizer keeps as directions is carried into each new basis.
  ``fold()`` gives the plain model's weights.
"""

from counterflow.whitening import methods as _methods  # noqa: F401 - enters them in the registry
from counterflow.whitening.whitened import WhitenHandle, whiten

__all__ = ["WhitenHandle", "whiten"]
