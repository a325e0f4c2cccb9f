"""The targets that scripts and the table of all ratios share, where records do not hold them. They were set before the
code was written.
"""

# Backpropagation through time: over the plan's cost, over segments at equal memory, fused chunks over one call of
# nn.LSTM, seconds for the mixed strategy's table, bytes of resident memory beyond the budget.
OVERHEAD, SEGMENTS, CHUNKS, TABLE, RESIDENT = 1.10, 1.0, 1.4, 5.0, 32 * 2**20

# Competing units: over ReLU's step, by net, batch and form, and by block.
COMPETITION = {("perceptron", 128, "plain"): {2: 1.05, 4: 1.08}, ("perceptron", 128, "compiled"): {2: 1.10, 4: 1.10}}

# Alignment: how many times as fast our kernel alone has to be. hmmlearn's is a kernel alone too; `best_path`, with its
# checks and its output, is held to the same beside the calls that users make.
ALIGNMENT = {"librosa viterbi": 100, "librosa dtw": 20, "numpy rows": 100, "torch rows": 500, "hmmlearn": 100}
PUBLIC_CALLS = ("librosa viterbi", "librosa dtw", "numpy rows", "torch rows")

# Speech: milliseconds for all predictions of 10 s, and the real-time factor of recognition.
PREDICTORS_MS, REAL_TIME = 20.0, 0.01

# Whitening: over a step of plain SGD.
WHITENED_STEP = 1.5
