"""The title tower by torch's automatic differentiation and its AdamW: the twin of `prefrec.towers.network`."""

import numpy as np
import torch
from torch import Tensor, nn

from prefrec.towers.network import SCALE, Dropped, TitleTower


class TorchTower(nn.Module):
    """The same weights, with the textbook loss. It has a step of training of its own."""

    def __init__(self, tower: TitleTower, weight_decay: float) -> None:
        super().__init__()
        self.titles = torch.from_numpy(tower.titles)
        for name, weight in tower.weights.items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(weight.copy())))
        self.optimizer = torch.optim.AdamW(self.parameters(), weight_decay=weight_decay)

    def forward(self, histories: Tensor, keep: Tensor, read: Tensor) -> Tensor:
        """Log-probabilities [B, n]."""
        vectors = self.titles @ self.project.T + keep[:, None] * self.own
        is_item, codes = histories >= 0, histories.clamp_min(0)
        seen = (vectors * read)[codes]
        ages = self.mean_ages.exp() * is_item
        ages = ages / ages.sum(dim=1, keepdim=True).clamp_min(1e-12)
        means = torch.einsum("bl,bld->bd", ages, seen)
        queries = torch.cat([seen @ self.predict.T, (means @ self.predict_mean.T)[:, None]], dim=1)
        after = (SCALE * queries @ vectors.T + keep * self.bias).log_softmax(dim=2)
        of_items = (self.log_weights + self.item_weights[codes]).masked_fill(~is_item, -torch.inf)
        of_mean = self.mean_weights[(is_item.sum(dim=1) - 1).clamp_min(0)]
        shares = torch.cat([of_items, of_mean[:, None]], dim=1).log_softmax(dim=1)
        return torch.logsumexp(shares[:, :, None] + after, dim=1)

    def step(self, histories, targets, dropped: Dropped, learning_rate: float) -> float:
        scores = self(torch.from_numpy(histories), *map(torch.from_numpy, dropped))
        loss = nn.functional.nll_loss(scores, torch.from_numpy(targets))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: weight.detach().numpy() for name, weight in self.named_parameters()}
