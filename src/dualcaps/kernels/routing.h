// Dynamic routing (Sabour et al. 2017), forward and backward, for vote vectors of 8, 16, 24 or 32 numbers.
//
// Votes and their gradient are float32 or bfloat16, everything else is float32.
// Each iteration is one pass over the votes, in which logits, their softmax and the weighted sums are computed child by
// child; the backward pass takes one pass for each iteration but the first, and one that writes the gradient.

#pragma once

#include "lanes.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

namespace dualcaps {

using at::Tensor;
constexpr int64_t TOGETHER = 8;  // images, where the votes lie child by child

// Where the votes [images, parents, children, dim] lie in memory; the numbers of a vote lie side by side.
struct Votes {
  explicit Votes(const Tensor& votes)
      : images(votes.size(0)),
        parents(votes.size(1)),
        children(votes.size(2)),
        dim(votes.size(3)),
        by_image(votes.stride(0)),
        by_parent(votes.stride(1)),
        by_child(votes.stride(2)) {}
  // Whether the votes of a child lie side by side for all images, and those of the next one far away.
  bool child_by_child() const { return by_image < by_child; }
  int64_t images, parents, children, dim, by_image, by_parent, by_child;
};

// e^x for x <= 0, with a relative error of about 1e-7; Cephes' polynomial.
inline Lanes exponential(Lanes x) {
  x = _mm256_max_ps(x, _mm256_set1_ps(-87.f));
  Lanes power = _mm256_round_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Lanes r = x - power * 0.693359375f + power * 2.12194440e-4f;
  Lanes value = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
                 1.6666665459e-1f) * r + 5.0000001201e-1f;
  value = value * r * r + r + 1.f;
  __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
  return value * Lanes(_mm256_castsi256_ps(exponent));
}

// The sum of the numbers of each of eight vectors.
inline Lanes sums_of(const Lanes (&rows)[LANES]) {
  __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
  __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(rows[4], rows[5]), _mm256_hadd_ps(rows[6], rows[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

inline float largest_of(Lanes x) {
  float most = x[0];
  for (int i = 1; i < LANES; ++i) most = std::max(most, x[i]);
  return most;
}

inline float sum_of(Lanes x) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += x[i];
  return sum;
}

// The scalar products of a child's votes with a vector for each parent, eight parents at once; zeros follow the last.
template <int L, typename Number>
inline void products(const Number* votes, int64_t step, const float* vectors, int64_t parents, float* found) {
  for (int64_t first = 0; first < parents; first += LANES) {
    Lanes rows[LANES];
    UNROLL
    for (int i = 0; i < LANES; ++i) {
      rows[i] = Lanes{};
      if (first + i >= parents) continue;
      const Number* vote = votes + (first + i) * step;
      const float* vector = vectors + (first + i) * L * LANES;
      UNROLL
      for (int l = 0; l < L; ++l) rows[i] += read(vote + l * LANES) * lanes(vector + l * LANES);
    }
    lanes(found + first) = sums_of(rows);
  }
}

// Asks for the votes of a child before they are needed.
template <typename Number>
inline void prefetch(const Number* votes, int64_t step, int64_t parents) {
  for (int64_t parent = 0; parent < parents; ++parent) _mm_prefetch(votes + parent * step, _MM_HINT_T0);
}

// Adds a child's votes, each times a weight, to a sum for each parent.
template <int L, typename Number>
inline void add_weighted(const Number* votes, int64_t step, const float* weights, int64_t parents, float* sums) {
  for (int64_t parent = 0; parent < parents; ++parent) {
    UNROLL
    for (int l = 0; l < L; ++l)
      lanes(sums + (parent * L + l) * LANES) += weights[parent] * read(votes + parent * step + l * LANES);
  }
}

inline void softmax(float* logits, int64_t parents, int64_t padded) {
  for (int64_t parent = parents; parent < padded; ++parent) logits[parent] = -std::numeric_limits<float>::infinity();
  Lanes most = lanes(logits);
  for (int64_t first = LANES; first < padded; first += LANES) most = _mm256_max_ps(most, lanes(logits + first));
  float largest = largest_of(most);
  Lanes total = {};
  for (int64_t first = 0; first < padded; first += LANES) {
    Lanes value = exponential(lanes(logits + first) - largest);
    if (first + LANES > parents)
      for (int64_t i = parents - first; i < LANES; ++i) value[i] = 0;
    lanes(logits + first) = value;
    total += value;
  }
  float scale = 1 / sum_of(total);
  for (int64_t first = 0; first < padded; first += LANES) lanes(logits + first) *= scale;
}

// v = s |s| / (k + |s|^2), as `squash`.
template <int L>
inline void squash(const float* sums, int64_t parents, float constant, float* poses) {
  for (int64_t parent = 0; parent < parents; ++parent, sums += L * LANES, poses += L * LANES) {
    Lanes squares = {};
    for (int l = 0; l < L; ++l) squares += lanes(sums + l * LANES) * lanes(sums + l * LANES);
    float square = sum_of(squares);
    float factor = std::sqrt(std::max(square, std::numeric_limits<float>::min())) / (constant + square);
    for (int l = 0; l < L; ++l) lanes(poses + l * LANES) = factor * lanes(sums + l * LANES);
  }
}

// The gradient by s from that by v, times `scale`.
template <int L>
inline void squash_backward(const float* sums, const float* gradient, int64_t parents, float constant, float scale,
                            float* found) {
  for (int64_t parent = 0; parent < parents; ++parent, sums += L * LANES, gradient += L * LANES, found += L * LANES) {
    Lanes squares = {}, along = {};
    for (int l = 0; l < L; ++l) {
      squares += lanes(sums + l * LANES) * lanes(sums + l * LANES);
      along += lanes(sums + l * LANES) * lanes(gradient + l * LANES);
    }
    float square = sum_of(squares), least = std::numeric_limits<float>::min();
    float length = std::sqrt(std::max(square, least)), below = constant + square;
    float slope = (square < least ? 0 : 1 / length) / below - 2 * length / (below * below);
    float factor = length / below, twist = slope * sum_of(along);
    for (int l = 0; l < L; ++l)
      lanes(found + l * LANES) = scale * (factor * lanes(gradient + l * LANES) + twist * lanes(sums + l * LANES));
  }
}

struct Settings {
  int64_t iterations;
  float constant;
  bool accumulate;
};

// What the backward pass needs of images [images, ...]: sums and poses of each iteration, couplings from the second on.
struct Saved {
  float *poses, *sums, *couplings;
};

// Routes `count` images from `first` on.
template <int L, typename Number>
void route_images(const Number* data, const Votes& votes, const Settings& settings, int64_t first, int64_t count,
                  const Saved& saved) {
  int64_t parents = votes.parents, children = votes.children, padded = (parents + LANES - 1) / LANES * LANES;
  int64_t pose = parents * L * LANES, iterations = settings.iterations;
  std::vector<float> before(settings.accumulate && iterations > 2 ? count * children * parents : 0), weights(padded);
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    auto vectors = [&](float* of, int64_t image, int64_t when) {
      return of + ((first + image) * iterations + when) * pose;
    };
    for (int64_t image = 0; image < count; ++image)
      std::fill_n(vectors(saved.sums, image, iteration), pose, 0.f);
    std::fill(weights.begin(), weights.end(), 1.f / parents);
    for (int64_t child = 0; child < children; ++child) {
      for (int64_t image = 0; image < count; ++image) {
        const Number* vote = data + (first + image) * votes.by_image + child * votes.by_child;
        if (votes.child_by_child() && child + 1 < children) prefetch(vote + votes.by_child, votes.by_parent, parents);
        if (iteration > 0) {
          products<L>(vote, votes.by_parent, vectors(saved.poses, image, iteration - 1), parents, weights.data());
          if (!before.empty()) {
            float* logits = before.data() + (image * children + child) * parents;
            for (int64_t parent = 0; parent < parents; ++parent) weights[parent] = logits[parent] += weights[parent];
          }
          softmax(weights.data(), parents, padded);
          float* couplings = saved.couplings +
                             (((first + image) * (iterations - 1) + iteration - 1) * children + child) * parents;
          std::copy_n(weights.data(), parents, couplings);
        }
        add_weighted<L>(vote, votes.by_parent, weights.data(), parents, vectors(saved.sums, image, iteration));
      }
    }
    for (int64_t image = 0; image < count; ++image)
      squash<L>(vectors(saved.sums, image, iteration), parents, settings.constant,
                vectors(saved.poses, image, iteration));
  }
}

template <int L, typename Number>
void route_images_backward(const Number* data, const float* gradient, const Votes& votes, const Settings& settings,
                           int64_t first, int64_t count, const Saved& saved, Number* found) {
  int64_t parents = votes.parents, children = votes.children, padded = (parents + LANES - 1) / LANES * LANES;
  int64_t pose = parents * L * LANES, iterations = settings.iterations, later = iterations - 1;
  auto vectors = [&](const float* of, int64_t image, int64_t when) {
    return of + ((first + image) * iterations + when) * pose;
  };
  // Gradients by the sums of all iterations, by the logits from the second on, and by the poses of the present one.
  std::vector<float> by_sums(count * iterations * pose), by_logits(count * later * children * parents);
  std::vector<float> by_poses(gradient + first * pose, gradient + (first + count) * pose), products_of(padded);
  for (int64_t iteration = later; iteration >= 0; --iteration) {
    for (int64_t image = 0; image < count; ++image) {
      squash_backward<L>(vectors(saved.sums, image, iteration), by_poses.data() + image * pose, parents,
                         settings.constant, iteration > 0 ? 1.f : 1.f / parents,
                         by_sums.data() + (image * iterations + iteration) * pose);
    }
    if (iteration == 0) break;
    std::fill(by_poses.begin(), by_poses.end(), 0.f);
    for (int64_t child = 0; child < children; ++child) {
      for (int64_t image = 0; image < count; ++image) {
        const Number* vote = data + (first + image) * votes.by_image + child * votes.by_child;
        if (votes.child_by_child() && child + 1 < children) prefetch(vote + votes.by_child, votes.by_parent, parents);
        const float* couplings =
            saved.couplings + (((first + image) * later + iteration - 1) * children + child) * parents;
        float* logits = by_logits.data() + ((image * later + iteration - 1) * children + child) * parents;
        products<L>(vote, votes.by_parent, by_sums.data() + (image * iterations + iteration) * pose, parents,
                    products_of.data());
        float mean = 0;
        for (int64_t parent = 0; parent < parents; ++parent) mean += couplings[parent] * products_of[parent];
        for (int64_t parent = 0; parent < parents; ++parent) {
          logits[parent] = couplings[parent] * (products_of[parent] - mean);
          if (settings.accumulate && iteration < later) logits[parent] += logits[parent + children * parents];
        }
        add_weighted<L>(vote, votes.by_parent, logits, parents, by_poses.data() + image * pose);
      }
    }
  }
  for (int64_t child = 0; child < children; ++child) {
    for (int64_t image = 0; image < count; ++image) {
      Number* to = found + (first + image) * votes.by_image + child * votes.by_child;
      for (int64_t parent = 0; parent < parents; ++parent) {
        Lanes sum[L];
        const float* by_sum = by_sums.data() + image * iterations * pose + parent * L * LANES;
        UNROLL
        for (int l = 0; l < L; ++l) sum[l] = lanes(by_sum + l * LANES);
        for (int64_t iteration = 1; iteration < iterations; ++iteration) {
          int64_t place = (iteration - 1) * children * parents + child * parents + parent;
          float coupling = saved.couplings[(first + image) * later * children * parents + place];
          float logit = by_logits[image * later * children * parents + place];
          const float* before = vectors(saved.poses, image, iteration - 1) + parent * L * LANES;
          UNROLL
          for (int l = 0; l < L; ++l)
            sum[l] += coupling * lanes(by_sum + iteration * pose + l * LANES) + logit * lanes(before + l * LANES);
        }
        UNROLL
        for (int l = 0; l < L; ++l) write(to + parent * votes.by_parent + l * LANES, sum[l]);
      }
    }
  }
}

// Calls use(width) with the number of lanes of a vote as a constant.
template <typename Use>
void for_dim(int64_t dim, const Use& use) {
  switch (dim) {
    case 8: return use(std::integral_constant<int, 1>());
    case 16: return use(std::integral_constant<int, 2>());
    case 24: return use(std::integral_constant<int, 3>());
    case 32: return use(std::integral_constant<int, 4>());
    default: TORCH_CHECK(false, "votes must have 8, 16, 24 or 32 numbers, got ", dim);
  }
}

// Calls use(first, count) for parts of the images, in parallel.
template <typename Use>
void for_images(const Votes& votes, const Use& use) {
  int64_t size = votes.child_by_child() ? TOGETHER : 1, parts = (votes.images + size - 1) / size;
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      use(part * size, std::min(size, votes.images - part * size));
  });
}

inline bool lies_densely(const Tensor& votes) { return votes.is_non_overlapping_and_dense() && votes.stride(3) == 1; }

inline void check_votes(const Tensor& votes, int64_t iterations) {
  TORCH_CHECK(votes.dim() == 4, "votes must have four dimensions");
  TORCH_CHECK(votes.size(1) > 0 && votes.size(2) > 0, "votes need at least one parent and child");
  TORCH_CHECK(iterations >= 1, "iterations must be at least 1");
}

// The poses of the last iteration, and for the backward pass those of all iterations [images, iterations, parents, dim],
// the sums that they are squashed from, and couplings [images, iterations - 1, children, parents].
inline std::tuple<Tensor, Tensor, Tensor, Tensor> route(const Tensor& given, int64_t iterations, double constant,
                                                        bool accumulate) {
  check_votes(given, iterations);
  Tensor votes = lies_densely(given) ? given : given.contiguous();
  Votes where(votes);
  at::TensorOptions options = votes.options().dtype(at::kFloat);
  Tensor poses = at::empty({where.images, iterations, where.parents, where.dim}, options);
  Tensor sums = at::empty_like(poses);
  Tensor couplings = at::empty({where.images, iterations - 1, where.children, where.parents}, options);
  Settings settings{iterations, static_cast<float>(constant), accumulate};
  Saved saved{poses.mutable_data_ptr<float>(), sums.mutable_data_ptr<float>(), couplings.mutable_data_ptr<float>()};
  for_type(votes, [&](auto number) {
    auto data = numbers<decltype(number)>(votes);
    for_dim(where.dim, [&](auto width) {
      for_images(where, [&](int64_t first, int64_t count) {
        route_images<width>(data, where, settings, first, count, saved);
      });
    });
  });
  return {poses.select(1, iterations - 1).clone(), poses, sums, couplings};
}

inline Tensor route_backward(const Tensor& gradient, const Tensor& given, const Tensor& poses, const Tensor& sums,
                             const Tensor& couplings, double constant, bool accumulate) {
  check_votes(given, poses.size(1));
  Tensor votes = lies_densely(given) ? given : given.contiguous();
  Tensor slopes = gradient.contiguous();
  Votes where(votes);
  Tensor found = at::empty_strided(votes.sizes(), votes.strides(), votes.options());
  TORCH_CHECK(slopes.scalar_type() == at::kFloat && slopes.numel() == where.images * where.parents * where.dim,
              "the gradient does not have the shape of the poses");
  Settings settings{poses.size(1), static_cast<float>(constant), accumulate};
  Tensor kept[] = {poses.contiguous(), sums.contiguous(), couplings.contiguous()};
  Saved saved{kept[0].mutable_data_ptr<float>(), kept[1].mutable_data_ptr<float>(), kept[2].mutable_data_ptr<float>()};
  const float* slope = slopes.const_data_ptr<float>();
  for_type(votes, [&](auto number) {
    auto data = numbers<decltype(number)>(votes);
    auto to = mutable_numbers<decltype(number)>(found);
    for_dim(where.dim, [&](auto width) {
      for_images(where, [&](int64_t first, int64_t count) {
        route_images_backward<width>(data, slope, where, settings, first, count, saved, to);
      });
    });
  });
  return lies_densely(given) ? found : at::empty_like(given).copy_(found);
}

}  // namespace dualcaps
