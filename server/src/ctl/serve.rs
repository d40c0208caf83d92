//! `goldsync serve`: finds the configuration, opens the log, and runs the server until a signal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use super::fail::{Code, Failure, Outcome};
use crate::cli::Serve;
use crate::config::{Config, ConfigError, DATA_DEFAULT};
use crate::daemon::{self, DaemonError};
use crate::init::CONFIG_FILE;

/// `goldsync serve`
pub async fn run(args: &Serve) -> Outcome {
    open_log();
    Ok(daemon::run(configuration(args)?).await?)
}

fn configuration(args: &Serve) -> Outcome<Config> {
    let path = config_path(args);
    if args.config.is_none() && !path.exists() {
        let folder = path.parent().unwrap_or(Path::new("."));
        return Err(DaemonError::NoServer(folder.to_owned()).into());
    }
    let mut config = Config::load(&path)?;
    // A folder that was moved is where it was said to be, not where its own file remembers it.
    if let Some(data) = &args.data {
        config.data =
            std::path::absolute(data).map_err(|error| Failure::io("cannot find the data folder", data, &error))?;
    }
    Ok(config)
}

fn config_path(args: &Serve) -> PathBuf {
    match (&args.config, &args.data) {
        (Some(config), _) => config.clone(),
        (None, Some(data)) => data.join(CONFIG_FILE),
        (None, None) => Path::new(DATA_DEFAULT).join(CONFIG_FILE),
    }
}

fn open_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // The journal stamps every line itself. A log that is open already (this verb inside another program) stays.
    let _ = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().with_ansi(false).try_init(),
        None => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let failure = Self::new(Code::Usage, error.to_string());
        match error {
            ConfigError::Read { .. } => {
                failure.remedy("run `goldsync init` first, or name the right file with --config")
            }
            _ => failure,
        }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let code = match &error {
            DaemonError::Config(_) | DaemonError::NoServer(_) => Code::Usage,
            DaemonError::Running(_) => Code::Busy,
            DaemonError::Io { .. } | DaemonError::Store(_) => Code::Disk,
            _ => Code::Failed,
        };
        match error {
            DaemonError::Config(error) => error.into(),
            DaemonError::Trust(error) => error.into(),
            error => Self::new(code, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(data: Option<&str>, config: Option<&str>) -> Serve {
        Serve { data: data.map(Into::into), config: config.map(Into::into) }
    }

    #[test]
    fn the_nearest_configuration_is_taken() {
        for (args, path) in [
            (serve(None, None), "/var/lib/goldsync-server/server.toml"),
            (serve(Some("/srv"), None), "/srv/server.toml"),
            (serve(Some("/srv"), Some("/x.toml")), "/x.toml"),
        ] {
            assert_eq!(config_path(&args), PathBuf::from(path), "{args:?}");
        }
    }

    #[test]
    fn a_folder_without_a_server_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let failure = configuration(&serve(folder.path().to_str(), None)).unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert!(failure.message.contains(&folder.path().display().to_string()), "{failure}");
        assert!(failure.message.contains("goldsync init"), "{failure}");
    }

    #[test]
    fn a_folder_that_was_moved_is_served_from_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG_FILE), "data = \"/old/place\"\n").unwrap();
        let config = configuration(&serve(folder.path().to_str(), None)).unwrap();
        assert_eq!(config.data, folder.path());
    }

    #[test]
    fn an_unknown_key_is_a_configuration_that_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG_FILE), "lisen = \"[::]:1\"\n").unwrap();
        let failure = configuration(&serve(folder.path().to_str(), None)).unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert!(failure.message.contains("listen"), "{failure}");
    }
}
