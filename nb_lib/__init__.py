"""Noise in SGD and the minima it finds: noise enhancement (NE), SmoothOut, and what both papers measured.

The science is on top, by name; `lab` has the machinery (data, networks, training, runs, sweeps, devices) and `page`
the way to a page (figures with sliders, intervals).  `EQUATIONS` is the map: every numbered equation of both papers,
what it says, and what computes it.  NE is Mori and Ueda, arXiv:2009.13094; SmoothOut is Wen et al., arXiv:1805.07898.

Import from the modules (``from nb_lib.smoothout import SmoothOut``); importing the package alone loads nothing heavy.
"""

import time

__version__ = "0.1.0"
#: When this process began to load the library, of ``time.monotonic()``: a budget given in the shell counts from here.
LOADED = time.monotonic()

#: Equation → what it says, and the functions of this package that compute it (none where the book alone treats it).
EQUATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "NE eq. 1": ("training loss L(w)", ("objective.Objective",)),
    "NE eq. 2": ("SGD with minibatches of size B", ("walkers.walk", "lab.training.Training")),
    "NE eq. 3": ("noise ξ of a step", ("gradient_noise.minibatch_noise", "toy_samples.minibatch_means")),
    "NE eq. 4": (
        "covariance of ξ, and S",
        ("noise_enhancement.noise_covariance", "gradient_noise.gradient_noise"),
    ),
    "NE eq. 5": ("naive enhancement by α", ("noise_enhancement.naive_covariance_factor",)),
    "NE eq. 6": ("noise enhancement", ("noise_enhancement.noise_enhanced_loss", "walkers.walk")),
    "NE eq. 7": ("noise ξ' of the second minibatch", ("gradient_noise.minibatch_noise",)),
    "NE eq. 8": ("the update with noise ξ of NE", ("gradient_noise.minibatch_noise",)),
    "NE eq. 9": ("α ξ + (1−α) ξ'", ("gradient_noise.minibatch_noise",)),
    "NE eq. 10": ("its covariance: c(α) = α² + (1−α)²", ("noise_enhancement.covariance_factor",)),
    "NE eq. 11": (
        "B_eff = B / c(α)",
        ("noise_enhancement.effective_batch_size", "noise_enhancement.alpha_for"),
    ),
    "SmoothOut eq. 1": ("smoothed loss C̄(w), a mean over copies", ("noise_sensitivity.noise_sensitivity",)),
    "SmoothOut eq. 2": ("Theorem 1: C̄ keeps the flat minimum", ("minima.minima",)),
    "SmoothOut eq. 3": ("Theorem 2: C̄ lifts the sharp minimum", ("minima.crossing",)),
    "SmoothOut eq. 4": ("box around w", ("sharpness.box_sharpness",)),
    "SmoothOut eq. 5": ("weight noise θ from U(−a, a)", ("smoothout.SmoothOut",)),
    "SmoothOut eq. 6": ("the mean over fixed copies is C̄ on average", ("walkers.walk",)),
    "SmoothOut eq. 7": ("loss C(w), a mean over the data", ("objective.Objective",)),
    "SmoothOut eq. 8": ("one copy a step is C̄ on average", ("smoothout.SmoothOut",)),
    "SmoothOut eq. 9": ("noise sensitivity s", ("noise_sensitivity.NoiseSensitivity.slope",)),
    "SmoothOut eq. 10": ("gradient at w + θ", ("smoothout.SmoothOut",)),
    "SmoothOut eq. 11": ("stochastic SmoothOut", ("smoothout.SmoothOut", "walkers.walk")),
    "SmoothOut eq. 12": ("AdaSmoothOut: noise per filter", ("smoothout.scaled_to_rows",)),
    "SmoothOut eq. 13": ("box of half-width a", ("toys.Smoothed",)),
    "SmoothOut eq. 14": ("C̄ as an integral over it", ("toys.Landscape.smoothed",)),
    "SmoothOut eq. 15": ("gradient of C̄", ("toys.Landscape.gradient",)),
    "SmoothOut eq. 16": ("notation: w without w_i", ()),
    "SmoothOut eq. 17": ("notation: dw without dw_i", ()),
    "SmoothOut eq. 18": ("proof of Theorem 2: highest loss near the sharp minimum", ()),
    "SmoothOut eq. 19": ("proof of Theorem 2: higher still in the rest of the box", ()),
    "SmoothOut eq. 20": ("proof of Theorem 2: so C̄ there is nearly as high", ()),
    "SmoothOut eq. 21": ("proof of Theorem 2: and as high in many dimensions", ()),
    "SmoothOut eq. 22": ("proof of Theorem 2: C̄ rises above the sharp minimum", ()),
    "SmoothOut eq. 23": ("proof of Theorem 2: bound of C̄ at the flat minimum", ()),
    "SmoothOut eq. 24": ("proof of Theorem 2: the sharp box rises faster with a", ()),
    "SmoothOut eq. 25": ("Theorem 2: C̄ is lower at the flat minimum", ("minima.crossing",)),
}
