import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adtr.config import ReconstructionConfig
from adtr.model.reconstruction import DecoderLayer, EncoderLayer, MultiHeadAttention, Reconstruction, attention

Array = NDArray[np.float64]

PAPER = ReconstructionConfig(
    reconstructor="transformer", width=256, heads=8, encoder_layers=4, decoder_layers=4, feedforward=1024
)
TINY = ReconstructionConfig(
    reconstructor="transformer", width=12, heads=3, encoder_layers=2, decoder_layers=3, feedforward=10
)
TOKENS, CHANNELS, IMAGES = 6, 5, 3


def shaken(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """Every parameter random, so that none is without effect: no zero biases, no unit norms."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def tensor(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The network again, in numpy and float64, image by image, head by head and row by row.


def array(x: Tensor) -> Array:
    return x.detach().double().numpy()


def literal_linear(layer: nn.Linear, x: Array) -> Array:
    return x @ array(layer.weight).T + array(layer.bias)


def literal_norm(layer: nn.LayerNorm, x: Array) -> Array:
    rows = [(row - row.mean()) / math.sqrt(row.var() + layer.eps) for row in x]
    return np.array(rows) * array(layer.weight) + array(layer.bias)


def literal_attention(layer: MultiHeadAttention, query: Array, key: Array, value: Array) -> Array:
    q, k, v = (literal_linear(part, x) for part, x in ((layer.query, query), (layer.key, key), (layer.value, value)))
    size = q.shape[1] // layer.heads
    mixed = np.zeros_like(q)
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(q)):
            weights = np.exp([q[i, part] @ k[j, part] / math.sqrt(size) for j in range(len(k))])
            mixed[i, part] = sum(w * v[j, part] for j, w in enumerate(weights / weights.sum()))
    return literal_linear(layer.output, mixed)


def literal_feedforward(layer: nn.Sequential, x: Array) -> Array:
    return literal_linear(layer[2], np.maximum(literal_linear(layer[0], x), 0))


def literal_encoder_layer(layer: EncoderLayer, x: Array, position: Array) -> Array:
    x = literal_norm(layer.norm1, x + literal_attention(layer.self_attention, x + position, x + position, x))
    return literal_norm(layer.norm2, x + literal_feedforward(layer.feedforward, x))


def literal_decoder_layer(layer: DecoderLayer, x: Array, memory: Array, position: Array) -> Array:
    x = literal_norm(layer.norm1, x + literal_attention(layer.self_attention, x + position, x + position, x))
    cross = literal_attention(layer.cross_attention, x + position, memory + position, memory)
    x = literal_norm(layer.norm2, x + cross)
    return literal_norm(layer.norm3, x + literal_feedforward(layer.feedforward, x))


def literal_reconstruction(network: Reconstruction, features: Array) -> Array:
    position = array(network.position)
    memory = literal_linear(network.project_in, features)
    for layer in network.encoder:
        memory = literal_encoder_layer(layer, memory, position)
    x = array(network.query)
    for layer in network.decoder:
        x = literal_decoder_layer(layer, x, memory, position)
    return literal_linear(network.project_out, x)


def test_attention_is_torchs() -> None:
    ours = shaken(MultiHeadAttention(12, 3))
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    theirs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
    theirs.in_proj_bias.data = torch.cat([ours.query.bias, ours.key.bias, ours.value.bias])
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    query, key, value = tensor(2, 4, 12, seed=1), tensor(2, 7, 12, seed=2), tensor(2, 7, 12, seed=3)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_attention_on_the_gpu_is_that_on_the_cpu() -> None:
    layer = shaken(MultiHeadAttention(64, 4))
    inputs = [tensor(2, 9, 64, seed=i) for i in range(3)]
    on_cpu = layer(*inputs)
    on_gpu = layer.cuda()(*(x.cuda() for x in inputs)).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-4)


def test_firm_attention_has_no_subnormal_numbers_that_slow_products_down() -> None:
    smallest = torch.finfo(torch.float32).tiny
    query, key = (30 * tensor(1, 64, 16, seed=seed) for seed in (1, 2))
    plain = (query @ key.mT / 4).softmax(-1)
    assert ((plain > 0) & (plain < smallest)).any()  # else there would be nothing to avoid
    query.requires_grad_()
    weights = attention(query, key, torch.eye(64)[None])
    assert not ((weights > 0) & (weights < smallest)).any()
    torch.testing.assert_close(weights, plain, rtol=1e-5, atol=1e-7)

    value = tensor(1, 64, 16, seed=3)
    (gradient,) = torch.autograd.grad(attention(query, key, value).square().sum(), query)
    exact = query.detach().double().requires_grad_()
    mixed = (exact @ key.double().mT / 4).softmax(-1) @ value.double()
    (literal,) = torch.autograd.grad(mixed.square().sum(), exact)
    torch.testing.assert_close(gradient.double(), literal, rtol=1e-3, atol=1e-5 * float(literal.abs().max()))


def test_attention_takes_one_row_of_queries_for_many_images() -> None:
    layer = shaken(MultiHeadAttention(12, 3))
    query, key, value = tensor(1, 4, 12), tensor(3, 7, 12, seed=2), tensor(3, 7, 12, seed=3)
    torch.testing.assert_close(
        layer(query, key, value), layer(query.expand(3, -1, -1), key, value), rtol=1e-5, atol=1e-6
    )


def test_without_positions_an_encoder_layer_is_torchs_post_norm_layer() -> None:
    ours = shaken(EncoderLayer(TINY))
    theirs = nn.TransformerEncoderLayer(12, 3, 10, dropout=0.0, activation="relu", batch_first=True, norm_first=False)
    attention = ours.self_attention
    projections = [attention.query, attention.key, attention.value]
    theirs.self_attn.in_proj_weight.data = torch.cat([p.weight for p in projections])
    theirs.self_attn.in_proj_bias.data = torch.cat([p.bias for p in projections])
    theirs.self_attn.out_proj.load_state_dict(attention.output.state_dict())
    theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feedforward[2].state_dict())
    theirs.norm1.load_state_dict(ours.norm1.state_dict())
    theirs.norm2.load_state_dict(ours.norm2.state_dict())
    x = tensor(2, TOKENS, 12)
    torch.testing.assert_close(ours(x, torch.zeros(TOKENS, 12)), theirs(x), rtol=1e-5, atol=1e-5)


def test_an_encoder_layer_is_the_literal_one() -> None:
    layer = shaken(EncoderLayer(TINY))
    x, position = tensor(IMAGES, TOKENS, 12), tensor(TOKENS, 12, seed=2)
    expected = [literal_encoder_layer(layer, array(image), array(position)) for image in x]
    np.testing.assert_allclose(array(layer(x, position)), expected, atol=1e-5)


def test_a_decoder_layer_is_the_literal_one() -> None:
    layer = shaken(DecoderLayer(TINY))
    x, memory, position = tensor(IMAGES, TOKENS, 12), tensor(IMAGES, TOKENS, 12, seed=2), tensor(TOKENS, 12, seed=3)
    expected = [
        literal_decoder_layer(layer, array(a), array(b), array(position)) for a, b in zip(x, memory, strict=True)
    ]
    np.testing.assert_allclose(array(layer(x, memory, memory + position, position)), expected, atol=1e-5)


def test_the_reconstruction_is_the_literal_one() -> None:
    network = shaken(Reconstruction(CHANNELS, TOKENS, TINY))
    features = tensor(IMAGES, TOKENS, CHANNELS)
    expected = [literal_reconstruction(network, array(image)) for image in features]
    np.testing.assert_allclose(array(network(features)), expected, atol=1e-5)


def test_one_row_of_queries_equals_a_full_batch_of_them() -> None:
    network = shaken(Reconstruction(CHANNELS, TOKENS, TINY))
    features = tensor(IMAGES, TOKENS, CHANNELS)
    memory = network.project_in(features)
    for layer in network.encoder:
        memory = layer(memory, network.position)
    x = network.query.expand(IMAGES, TOKENS, 12)
    for layer in network.decoder:
        x = layer(x, memory, memory + network.position, network.position)
    torch.testing.assert_close(network(features), network.project_out(x), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_queries_counts_every_image() -> None:
    network = shaken(Reconstruction(CHANNELS, TOKENS, TINY))
    features = tensor(IMAGES, TOKENS, CHANNELS)
    network(features).square().sum().backward()
    together = network.query.grad.clone()
    network.query.grad = None
    for image in features:
        network(image[None]).square().sum().backward()
    torch.testing.assert_close(together, network.query.grad, rtol=1e-4, atol=1e-5)


def test_every_parameter_takes_part() -> None:
    network = shaken(Reconstruction(CHANNELS, TOKENS, TINY))
    network(tensor(IMAGES, TOKENS, CHANNELS)).pow(3).sum().backward()
    for name, parameter in network.named_parameters():
        if not name.endswith("key.bias"):  # the same for all keys of a query: the softmax does not see it
            assert parameter.grad.abs().max() > 1e-6, name


def test_images_of_a_batch_do_not_mix() -> None:
    network = shaken(Reconstruction(CHANNELS, TOKENS, TINY))
    features = tensor(IMAGES, TOKENS, CHANNELS)
    alone = torch.cat([network(image[None]) for image in features])
    torch.testing.assert_close(network(features), alone, rtol=1e-5, atol=1e-5)
    changed = features.clone()
    changed[0] += 1
    torch.testing.assert_close(network(changed)[1:], network(features)[1:], rtol=0, atol=1e-6)
    assert (network(changed)[0] - network(features)[0]).abs().max() > 1e-3


def test_without_positions_the_order_of_the_tokens_is_invisible() -> None:
    """The position embedding is all that tells tokens apart: the queries then see a bag of tokens."""
    network = shaken(Reconstruction(CHANNELS, TOKENS, TINY))
    features = tensor(1, TOKENS, CHANNELS)
    turned = features.flip(1)
    assert (network(turned) - network(features)).abs().max() > 1e-3
    network.position.data.zero_()
    torch.testing.assert_close(network(turned), network(features), rtol=1e-5, atol=1e-5)


def expected_parameters(channels: int, tokens: int, d: int, hidden: int, encoders: int, decoders: int) -> int:
    """Appendix A, counted by hand."""
    attention = 4 * (d * d + d)
    feedforward = (d * hidden + hidden) + (hidden * d + d)
    norm = 2 * d
    encoder = attention + feedforward + 2 * norm
    decoder = 2 * attention + feedforward + 3 * norm
    convolutions = (channels * d + d) + (d * channels + channels)
    embeddings = 2 * tokens * d
    return encoders * encoder + decoders * decoder + convolutions + embeddings


@pytest.mark.parametrize(
    ("channels", "tokens", "count"), [(720, 1024, 8_266_704), (720, 256, 7_873_488), (720, 64, 7_775_184)]
)
def test_the_papers_network_has_the_papers_size(channels: int, tokens: int, count: int) -> None:
    network = Reconstruction(channels, tokens, PAPER)
    assert sum(p.numel() for p in network.parameters()) == count
    assert expected_parameters(channels, tokens, 256, 1024, 4, 4) == count
    assert network.position.shape == network.query.shape == (tokens, 256)
    assert (len(network.encoder), len(network.decoder)) == (4, 4)
    assert not list(network.buffers())


def test_output_and_input_have_one_shape() -> None:
    network = Reconstruction(CHANNELS, TOKENS, TINY)
    assert network(tensor(1, TOKENS, CHANNELS)).shape == (1, TOKENS, CHANNELS)
    assert network(tensor(IMAGES, TOKENS, CHANNELS)).shape == (IMAGES, TOKENS, CHANNELS)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    def initial(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return Reconstruction(CHANNELS, TOKENS, TINY).state_dict()

    first, again, other = initial(0), initial(0), initial(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["query"], other["query"])
    assert not torch.equal(first["query"], first["position"])
