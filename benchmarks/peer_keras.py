"""The Keras example's capsule network in Keras 3, on the backend that KERAS_BACKEND names; for peers.py.

Answers on standard output, a line of JSON each: once what it is and the lengths it computes from the
given weights, then, for each line read, the seconds that training took.
"""

import json
import os
import sys
import time
from importlib import metadata

import keras
import numpy as np
from keras import layers, ops


def squash(vectors):
    """|s|^2 / (0.5 + |s|^2) s / |s|."""
    square = ops.sum(ops.square(vectors), axis=-1, keepdims=True) + keras.backend.epsilon()
    return ops.sqrt(square) / (0.5 + square) * vectors


class Capsule(layers.Layer):
    """Ten capsules of 16 numbers, one transform shared by all children, three routings."""

    def build(self, input_shape):
        """One matrix for all."""
        self.kernel = self.add_weight(shape=(input_shape[-1], 160), initializer="glorot_uniform", name="kernel")

    def call(self, inputs):
        """Vote and route."""
        votes = ops.transpose(ops.reshape(ops.matmul(inputs, self.kernel), (-1, inputs.shape[1], 10, 16)), (0, 2, 1, 3))
        logits = ops.zeros_like(votes[:, :, :, 0])
        for iteration in range(3):
            couplings = ops.softmax(logits, axis=1)
            poses = squash(ops.einsum("bjn,bjnd->bjd", couplings, votes))
            if iteration < 2:
                logits = ops.einsum("bjd,bjnd->bjn", poses, votes)
        return poses


def margin_loss(one_hot, lengths):
    """As in the example."""
    present = one_hot * ops.square(ops.relu(0.9 - lengths))
    absent = 0.5 * (1 - one_hot) * ops.square(ops.relu(lengths - 0.1))
    return ops.sum(present + absent, axis=-1)


def build(height, width, channels, jit):
    """The network."""
    kernel = 2 if min(height, width) < 32 else 3
    image = layers.Input((height, width, channels))
    x = layers.Conv2D(64, 3, activation="relu")(image)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.AveragePooling2D(2)(x)
    x = layers.Conv2D(128, kernel, activation="relu")(x)
    x = layers.Conv2D(128, kernel, activation="relu")(x)
    x = layers.Reshape((-1, 128))(x)
    poses = Capsule()(x)
    lengths = layers.Lambda(lambda p: ops.sqrt(ops.sum(ops.square(p), axis=2)), output_shape=(10,))(poses)
    model = keras.Model(image, lengths)
    model.compile(loss=margin_loss, optimizer="adam", jit_compile=jit or "auto")
    return model


def main():
    """Serve until the input ends."""
    policy, weights, *numbers = sys.argv[1:]
    keras.config.set_dtype_policy(policy.removeprefix("jit "))
    height, width, channels, batch, steps = map(int, numbers)
    model = build(height, width, channels, policy.startswith("jit "))
    with np.load(weights) as given:
        images = given["images"].astype("float32") / 255
        arrays = []
        for name in ("conv1", "conv2", "conv3", "conv4"):
            arrays += [given[f"trunk.{name}.weight"].transpose(2, 3, 1, 0), given[f"trunk.{name}.bias"]]
        arrays.append(given["votes.transform.weight"].T)
    model.set_weights(arrays)
    backend = os.environ["KERAS_BACKEND"]
    distribution = {"tensorflow": "tensorflow-cpu"}.get(backend, backend)
    about = {
        "keras": keras.__version__,
        "backend": metadata.version(distribution),
        "lengths": np.asarray(model.predict(images, verbose=0), dtype=np.float32).tolist(),
    }
    print(json.dumps(about), flush=True)
    random = np.random.default_rng(0)
    x = random.random((steps * batch, height, width, channels), dtype=np.float32)
    y = keras.utils.to_categorical(random.integers(0, 10, steps * batch), 10)
    for _ in sys.stdin:
        started = time.perf_counter()
        model.fit(x, y, batch_size=batch, epochs=1, verbose=0)
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
