"""From hidden states to one vector a text: stage 4 of the data's path.

An encoder gives one hidden state a token, (N, T, D). A reward head wants one vector a text, (N, D).
Three ways to get there, all reading the attention mask, so that left, right or extra padding gives
the same vector:

- `mean_pool`: the average over the real tokens. The default for encoders (BERT and its kin).
- `last_token_pool`: the last real token. The default for decoders (GPT-2, Llama, Qwen), where only
  the last token has seen the whole text.
- `cls_pool`: the first real token, which BERT calls [CLS].

The classic mistake is `hidden[:, -1]`: with right padding that is the state of a PAD token for all
texts but the longest, and it changes with whatever else is in the batch. The second is
`mask.sum(1) - 1`, right under right padding only. The third is to look for PAD by token id: where
PAD and EOS share an id, as in GPT-2, it finds the wrong place.

Copy this file alone; it needs torch only. Read next: `heads.py`.

>>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])  # the 9 is padding
>>> mask = torch.tensor([[1, 1, 0]])
>>> mean_pool(hidden, mask).tolist(), last_token_pool(hidden, mask).tolist()
([[2.0]], [[3.0]])
"""

import torch
from torch import Tensor


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average of the real tokens' states: (N, T, D), (N, T) -> (N, D).

    The mean-pooling of Sentence-BERT (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084).
    Summed in float32 whatever the encoder's dtype. A text without any real token gives zeros.

    Tried for bt-finetune: the mean of the response's tokens alone, behind a [SEP] (calibrated loss
    on validation, lower is better): GSM8K folds 0 and 1 0.608, 0.628, bundled folds 2 and 0 0.434,
    0.440; of all tokens, as here, 0.617, 0.627 and 0.405, 0.441. A mean weighted towards the tokens
    of lowest reward (a solution is as good as its worst step) lost: 0.670 for 0.637 (GSM8K fold 0,
    with `--balance`).
    """
    weight = mask.unsqueeze(-1).float()  # (N, T, 1)
    total = (hidden.float() * weight).sum(dim=1)  # (N, D)
    return total / weight.sum(dim=1).clamp(min=1.0)


def last_token_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """State of the last real token, on either padding side: (N, T, D), (N, T) -> (N, D)."""
    positions = torch.arange(mask.shape[1], device=mask.device)  # (T,)
    last = (positions * mask).argmax(dim=1)  # (N,) the largest position that is not masked
    return hidden[torch.arange(len(hidden), device=hidden.device), last].float()


def cls_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """State of the first real token, on either padding side: (N, T, D), (N, T) -> (N, D)."""
    first = mask.int().argmax(dim=1)  # (N,) argmax returns the first of equal maxima
    return hidden[torch.arange(len(hidden), device=hidden.device), first].float()


POOLERS = {"mean": mean_pool, "last": last_token_pool, "cls": cls_pool}
