"""Pooling: from the hidden states of a text's tokens to one vector.

An encoder gives one hidden state for each token, (N, T, D). A reward head takes one vector for each
text, (N, D). There are three usual ways to get from one to the other:

- `mean_pool` takes the average over the real tokens. It is the default for encoders such as BERT,
  in which every token has seen the whole text, so that each has something to say about it. The
  sentence encoders that we start from were also trained with it.
- `last_token_pool` takes the last real token. It is the default for decoders such as GPT-2, Llama
  and Qwen, in which only the last token has seen the whole text.
- `cls_pool` takes the first real token, which is [CLS] in BERT.

All three find the real tokens with the attention mask. So they read the same tokens whether the
padding is on the left, on the right, or longer than necessary. Three mistakes are common:

1. `hidden[:, -1]`. With padding on the right, this is the state of a PAD token for every text but
   the longest of the batch. The result then depends on which other texts are in the batch.
2. `mask.sum(1) - 1` as the last token's position. It is right only if the padding is on the right.
3. Looking for the PAD tokens by their id. Where PAD and EOS share one id, as they usually do with
   GPT-2, an EOS token that belongs to the text is taken for padding.

To add a pooler, write a function of (hidden, mask), put it into `POOLERS`, and name it in the
`pooling` setting of `settings.py`.

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

    This is the mean pooling of Sentence-BERT (Reimers and Gurevych 2019,
    https://arxiv.org/abs/1908.10084). The sum is in float32 whatever the encoder's dtype. A text
    without any real token gives zeros.

    Two other means were tried for fine-tuning and were not better on the whole: one of the
    response's tokens alone, and one weighted towards the tokens of lowest reward. See
    minirlhf/experiments/README.md.
    """
    weight = mask.unsqueeze(-1).float()  # (N, T, 1)
    total = (hidden.float() * weight).sum(dim=1)  # (N, D)
    count = weight.sum(dim=1).clamp(min=1.0)  # (N, 1), at least 1 to not divide by zero
    return total / count


def last_token_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """State of the last real token, wherever the padding is: (N, T, D), (N, T) -> (N, D)."""
    positions = torch.arange(mask.shape[1], device=mask.device)  # (T,)
    last = (positions * mask).argmax(dim=1)  # (N,) the largest position that is not masked
    texts = torch.arange(len(hidden), device=hidden.device)  # (N,)
    return hidden[texts, last].float()


def cls_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """State of the first real token, wherever the padding is: (N, T, D), (N, T) -> (N, D)."""
    first = mask.int().argmax(dim=1)  # (N,) argmax returns the first of equal maxima
    texts = torch.arange(len(hidden), device=hidden.device)  # (N,)
    return hidden[texts, first].float()


POOLERS = {"mean": mean_pool, "last": last_token_pool, "cls": cls_pool}
