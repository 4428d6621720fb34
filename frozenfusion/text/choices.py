"""What can be chosen of recurrent text encoders, by name; loads nothing."""

from __future__ import annotations

RECURRENT = ("lstm", "gru", "bilstm", "bigru")  # as `text_encoder`; a folder of such a name is ./lstm

WORD2VEC = "word2vec"  # as `word_vectors`: trained on the training texts

OPTIONS = ("rnn_width", "rnn_layers", "words", "word_vectors")  # what means something to recurrent encoders alone
