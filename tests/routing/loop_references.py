"""Routing methods as loops over scalars, one sample at a time, straight from the papers' equations.

Each function takes the votes of a sample `[J, N, D]`, the method's parameters by name, and the iterations, and
returns the poses `[J, D]` and couplings `[J, N]`.
"""

# pyright: reportPossiblyUnboundVariable=false, reportReturnType=false

import math

import torch
from torch import Tensor

TINY = 1e-12  # under the root of lengths, as in the package


def dot(a: list, b: list) -> Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(vector: list) -> Tensor:
    return torch.sqrt(dot(vector, vector) + TINY)


def softmax(values: list) -> list:
    largest = max(value.item() for value in values)
    powers = [torch.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def over_parents(logits: list) -> list:
    """Couplings [J][N] from logits [J][N]."""
    columns = [softmax([row[i] for row in logits]) for i in range(len(logits[0]))]
    return [[columns[i][j] for i in range(len(columns))] for j in range(len(logits))]


def weighted_sum(weights: list, votes: Tensor) -> list:
    """`sum_i w_i u_i` of the votes [N, D] for one parent."""
    return [sum(weights[i] * votes[i, d] for i in range(len(votes))) for d in range(votes.shape[1])]


def packed(rows: list) -> Tensor:
    return torch.stack([torch.stack(list(row)) for row in rows])


def uniform(votes: Tensor, parameters: dict, iterations: int) -> tuple[Tensor, Tensor]:
    couplings = [[torch.tensor(1 / len(votes), dtype=votes.dtype)] * votes.shape[1]] * len(votes)
    poses = []
    for j in range(len(votes)):
        s = weighted_sum(couplings[j], votes[j])
        square = dot(s, s)
        poses.append([square / (0.5 + square) * x / torch.sqrt(square + 1e-300) for x in s])
    return packed(poses), packed(couplings)


def self_attention(votes: Tensor, parameters: dict, iterations: int) -> tuple[Tensor, Tensor]:
    parents, children, dim = votes.shape
    logits = [
        [sum(dot(votes[j, i], votes[j, k]) / math.sqrt(dim) for k in range(children)) for i in range(children)]
        for j in range(parents)
    ]
    couplings = over_parents(logits)
    poses = []
    for j in range(parents):
        s = weighted_sum([couplings[j][i] + parameters["prior"][j, i] for i in range(children)], votes[j])
        poses.append([(1 - torch.exp(-length(s))) * x / length(s) for x in s])
    return packed(poses), packed(couplings)


def inverted_attention(votes: Tensor, parameters: dict, iterations: int) -> tuple[Tensor, Tensor]:
    parents, children, dim = votes.shape
    directions = [[votes.new_zeros(())] * dim] * parents
    for _ in range(iterations):
        couplings = over_parents([[dot(directions[j], votes[j, i]) for i in range(children)] for j in range(parents)])
        directions = []
        for j in range(parents):
            s = weighted_sum(couplings[j], votes[j])
            mean = sum(s) / dim
            deviation = torch.sqrt(sum((x - mean) ** 2 for x in s) / dim + 1e-5)
            scale, shift = parameters["norm.weight"], parameters["norm.bias"]
            directions.append([(s[d] - mean) / deviation * scale[d] + shift[d] for d in range(dim)])
    poses = []
    for p in directions:
        activation = torch.sigmoid(dot(p, parameters["read_out.weight"][0]) + parameters["read_out.bias"][0])
        poses.append([activation * x / length(p) for x in p])
    return packed(poses), packed(couplings)


def self_routing(votes: Tensor, parameters: dict, iterations: int) -> tuple[Tensor, Tensor]:
    parents, children, _ = votes.shape
    weight, offset = parameters["weight"], parameters["offset"]
    couplings = over_parents(
        [[dot(votes[j, i], weight[j, i]) + offset[j, i] for i in range(children)] for j in range(parents)]
    )
    poses = []
    for j in range(parents):
        s = weighted_sum(couplings[j], votes[j])
        poses.append([sum(couplings[j]) / children * x / length(s) for x in s])
    return packed(poses), packed(couplings)


def em(votes: Tensor, parameters: dict, iterations: int) -> tuple[Tensor, Tensor]:
    parents, children, dim = votes.shape
    couplings = [[votes.new_tensor(1 / parents)] * children for _ in range(parents)]
    for t in range(1, iterations + 1):
        if t > 1:
            logits = []
            for j in range(parents):
                logits.append([])
                for i in range(children):
                    log_density = sum(
                        -((votes[j, i, h] - means[j][h]) ** 2) / (2 * variances[j][h])
                        - torch.log(2 * math.pi * variances[j][h]) / 2
                        for h in range(dim)
                    )
                    logits[j].append(torch.log(activations[j]) + log_density)
            couplings = over_parents(logits)
        means, variances, activations = [], [], []
        for j in range(parents):
            assigned = sum(couplings[j])
            mean = [x / assigned for x in weighted_sum(couplings[j], votes[j])]
            variance = [
                (sum(couplings[j][i] * (votes[j, i, h] - mean[h]) ** 2 for i in range(children)) / assigned).clamp(1e-4)
                for h in range(dim)
            ]
            amount = assigned / (children / parents)
            cost = sum((parameters["beta_u"][j] + torch.log(torch.sqrt(variance[h]))) * amount for h in range(dim))
            activations.append(torch.sigmoid((1 - 0.95**t) * (parameters["beta_a"][j] - cost)))
            means.append(mean)
            variances.append(variance)
    poses = [[activations[j] * x / length(means[j]) for x in means[j]] for j in range(parents)]
    return packed(poses), packed(couplings)


REFERENCES = {
    "em": em,
    "inverted-attention": inverted_attention,
    "self-attention": self_attention,
    "self-routing": self_routing,
    "uniform": uniform,
}
