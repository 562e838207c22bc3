//! Which path and method of the asynchronous surface means what.

use hyper::Method;

use crate::domain::job::JobId;

use super::super::problem::{Code, Problem};

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Submit,
    SubmitMany,
    List,
    RetryMany,
    PurgeMany,
    Job(JobId),
    Delete(JobId),
    Output(JobId),
    Request(JobId),
    Artifact(JobId, String),
    JobEvents(JobId),
    Cancel(JobId),
    Retry(JobId),
    Events,
    OpenApi,
}

impl Target {
    /// The target of a request.
    ///
    /// # Errors
    /// A path that is none, a job id that cannot be one (there is no such job), or a method that the path does not have.
    pub(super) fn of(path: &str, method: &Method) -> Result<Target, Problem> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let by_method: &[(Method, Target)] = &match parts.as_slice() {
            ["jobs"] => vec![(Method::GET, Target::List), (Method::POST, Target::Submit)],
            ["jobs", "batch"] => vec![(Method::POST, Target::SubmitMany)],
            ["jobs", "retry"] => vec![(Method::POST, Target::RetryMany)],
            ["jobs", "purge"] => vec![(Method::POST, Target::PurgeMany)],
            ["events"] => vec![(Method::GET, Target::Events)],
            ["openapi.json"] => vec![(Method::GET, Target::OpenApi)],
            ["jobs", id, rest @ ..] => of_job(path, id, rest)?,
            _ => return Err(no_route(path)),
        };
        let is_asked =
            |other: &Method| other == method || (*other == Method::GET && method == Method::HEAD);
        match by_method.iter().find(|(other, _)| is_asked(other)) {
            Some((_, target)) => Ok(target.clone()),
            None => Err(no_method(method, by_method)),
        }
    }
}

fn of_job(path: &str, id: &str, rest: &[&str]) -> Result<Vec<(Method, Target)>, Problem> {
    let id: JobId = id.parse().map_err(|_| no_job(id))?;
    Ok(match rest {
        [] => vec![(Method::GET, Target::Job(id)), (Method::DELETE, Target::Delete(id))],
        ["output"] => vec![(Method::GET, Target::Output(id))],
        ["request"] => vec![(Method::GET, Target::Request(id))],
        ["artifacts", name] => vec![(Method::GET, Target::Artifact(id, (*name).to_owned()))],
        ["events"] => vec![(Method::GET, Target::JobEvents(id))],
        ["cancel"] => vec![(Method::POST, Target::Cancel(id))],
        ["retry"] => vec![(Method::POST, Target::Retry(id))],
        _ => return Err(no_route(path)),
    })
}

/// Characters of a path that are told back.
const TOLD_CHARACTERS_MAX: usize = 64;

fn no_route(path: &str) -> Problem {
    let path: String = path.chars().take(TOLD_CHARACTERS_MAX).collect();
    Problem::new(Code::UnknownRoute, format!("foreman has no route {path:?}; see /openapi.json"))
}

fn no_job(id: &str) -> Problem {
    let id: String = id.chars().take(TOLD_CHARACTERS_MAX).collect();
    Problem::new(Code::UnknownJob, format!("{id:?} is not the id of a job"))
}

fn no_method(method: &Method, by_method: &[(Method, Target)]) -> Problem {
    let has = |wanted: &Method| by_method.iter().any(|(other, _)| other == wanted);
    let allowed = match (has(&Method::GET), has(&Method::POST), has(&Method::DELETE)) {
        (true, true, _) => "GET, HEAD, POST",
        (true, _, true) => "GET, HEAD, DELETE",
        (true, ..) => "GET, HEAD",
        (false, ..) => "POST",
    };
    let name: String = method.as_str().chars().take(TOLD_CHARACTERS_MAX).collect();
    let text = format!("this route has no method {name}, only {allowed}");
    Problem::new(Code::MethodNotAllowed, text).allow(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

    fn of(method: Method, path: &str) -> Result<Target, (u16, Option<&'static str>)> {
        Target::of(path, &method).map_err(|problem| (problem.code.status().as_u16(), problem.allow))
    }

    #[test]
    fn each_path_has_its_methods() {
        let id: JobId = ID.parse().unwrap();
        assert_eq!(of(Method::POST, "/jobs"), Ok(Target::Submit));
        assert_eq!(of(Method::HEAD, "/jobs"), Ok(Target::List));
        assert_eq!(of(Method::PUT, "/jobs"), Err((405, Some("GET, HEAD, POST"))));
        assert_eq!(of(Method::GET, "/jobs/batch"), Err((405, Some("POST"))));
        assert_eq!(of(Method::GET, &format!("/jobs/{ID}")), Ok(Target::Job(id)));
        assert_eq!(of(Method::DELETE, &format!("/jobs/{ID}")), Ok(Target::Delete(id)));
        assert_eq!(of(Method::POST, &format!("/jobs/{ID}")), Err((405, Some("GET, HEAD, DELETE"))));
        assert_eq!(of(Method::POST, &format!("/jobs/{ID}/cancel")), Ok(Target::Cancel(id)));
        let artifact = Target::Artifact(id, "completion".to_owned());
        assert_eq!(of(Method::GET, &format!("/jobs/{ID}/artifacts/completion")), Ok(artifact));
        for path in ["/jobs/", "/jobs/nobody", "/jobs/nobody/output"] {
            assert_eq!(of(Method::GET, path), Err((404, None)), "{path}");
        }
        for path in ["/jobs/x/y/z", &format!("/jobs/{ID}/what"), "/eventsx"] {
            assert_eq!(of(Method::GET, path), Err((404, None)), "{path}");
        }
    }
}
