"""`python -m onnx_rnn_prune`: the same as the command `onnx-rnn-prune`."""

from onnx_rnn_prune.cli import main

if __name__ == "__main__":
    main()
