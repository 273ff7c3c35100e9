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

    def forward(self, histories: Tensor, keep: Tensor, factors: Tensor) -> Tensor:
        vectors = self.titles @ self.project.T + keep[:, None] * self.own
        is_item = histories >= 0
        weights = self.log_weights.exp() * is_item
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
        read = factors * nn.functional.embedding(histories.clamp_min(0), vectors)
        states = SCALE * torch.einsum("bl,bld->bd", weights, read) @ self.predict.T
        return states @ vectors.T + keep * self.bias

    def step(self, histories, targets, dropped: Dropped, learning_rate: float) -> float:
        scores = self(torch.from_numpy(histories), *map(torch.from_numpy, dropped))
        loss = nn.functional.cross_entropy(scores, torch.from_numpy(targets))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: weight.detach().numpy() for name, weight in self.named_parameters()}
