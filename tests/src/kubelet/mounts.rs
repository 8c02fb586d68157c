//! The file system of a container: the machine's, with volumes where the container wants them, and a host name; seen by nobody else.

use std::path::{Path, PathBuf};

/// Runs in a mount and a UTS namespace of the container's own. Where a volume is to be and nothing is, an overlay makes room; where the
/// container says that its root is read-only, it is.
const SCRIPT: &str = r#"
set -eu
echo "$1" > /proc/sys/kernel/hostname
scratch=$2 root=$3 count=0 overlaid=
shift 3
cp /etc/resolv.conf "$scratch.resolv"
mount -t tmpfs none "$scratch"
while [ "$1" != -- ]; do
  from=$1 to=$2 how=$3 there=$2
  shift 3
  while [ ! -d "$there" ]; do there=${there%/*}; [ -n "$there" ]; done
  if [ "$there" != "$to" ]; then
    for one in $overlaid; do case "$there/" in "$one"/*) there= ;; esac; done
    if [ -n "$there" ]; then
      count=$((count + 1))
      mkdir -p "$scratch/$count/upper" "$scratch/$count/work"
      mount -t overlay overlay -o "lowerdir=$there,upperdir=$scratch/$count/upper,workdir=$scratch/$count/work" "$there"
      overlaid="$overlaid $there"
      # What `ip netns exec` has put over it is under the overlay now.
      [ "$there" != /etc ] || cp "$scratch.resolv" /etc/resolv.conf
    fi
    mkdir -p "$to"
  fi
  mount --bind "$from" "$to"
  [ "$how" = rw ] || mount -o remount,bind,ro "$to"
done
shift
[ "$root" = rw ] || for one in $overlaid /; do mount -o remount,bind,ro "$one"; done
exec "$@"
"#;

/// Makes another root of all that the machine's has, with room for new directories at the top and in `/run`; what is mounted in either later on,
/// such as a network namespace, is seen here, too. Then goes on in it.
const ROOT: &str = r#"
set -eu
root=$1
shift
mount -t tmpfs none "$root"
for one in /* /run/*; do
  if [ -L "$one" ]; then
    cp -P "$one" "$root$one"
  elif [ -d "$one" ]; then
    mkdir "$root$one"
    [ "$one" = /run ] || mount --rbind "$one" "$root$one"
  fi
done
while [ "$1" != -- ]; do chroot "$root" mkdir -p "$1"; shift; done
shift
exec chroot "$root" "$@"
"#;

/// A volume's place in a container.
pub(super) struct Mount {
    pub(super) from: PathBuf,
    pub(super) to: String,
    pub(super) read_only: bool,
}

/// What goes in front of a program, so that it finds its volumes in their places. `seen` says that it is to see what the machine mounts
/// meanwhile.
pub(super) fn words(
    host_name: &str,
    scratch: &Path,
    sealed: bool,
    seen: bool,
    mounts: &[Mount],
) -> Vec<String> {
    let how = |read_only: bool| if read_only { "ro" } else { "rw" }.to_owned();
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    let mut words = ["unshare", "--uts"].map(str::to_owned).to_vec();
    if seen {
        words.extend(["sh", "-c", ROOT, "sh"].map(str::to_owned));
        words.push(shown(scratch));
        words.extend(mounts.iter().map(|mount| mount.to.clone()).filter(|to| is_new(to)));
        words.push("--".to_owned());
    }
    words.extend(["sh", "-c", SCRIPT, "sh", host_name].map(str::to_owned));
    words.extend([shown(scratch), how(sealed)]);
    for mount in mounts {
        words.extend([shown(&mount.from), mount.to.trim_end_matches('/').to_owned(), how(mount.read_only)]);
    }
    words.push("--".to_owned());
    words
}

/// Whether the other root has room for it; anywhere else it would be made on the machine.
fn is_new(to: &str) -> bool {
    let top: PathBuf = Path::new(to).components().take(2).collect();
    to.starts_with("/run/") || to.starts_with("/var/run/") || !top.exists()
}
