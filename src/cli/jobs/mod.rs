//! `foreman submit` and `foreman jobs`: the surface of docs/jobs.md from the command line, over HTTP only.

pub(super) mod arguments;
mod bars;
mod deliveries;
mod events;
mod follow;
mod list;
mod many;
mod outcome;
mod patience;
mod records;
mod request;
mod show;
mod sse;
mod submit;
mod text;
mod wait;

use arguments::{Jobs, Submit, Verb};

use super::Exit;
use super::ask::run;
use follow::Form;

/// Hands in a job, or many.
pub(super) fn submit(arguments: &Submit) -> Exit {
    run(&arguments.daemon, async |caller| submit::submit(caller, arguments).await)
}

/// Does what is to be done with jobs.
pub(super) fn jobs(arguments: &Jobs) -> Exit {
    run(&arguments.daemon, async |caller| match &arguments.verb {
        Verb::List(list) => list::list(caller, list).await,
        Verb::Show(one) => show::show(caller, one).await,
        Verb::Wait(wait) => wait::wait(caller, wait).await,
        Verb::Follow(follow) => {
            let form = if follow.raw { Form::Raw } else { Form::Text };
            follow::follow(caller, &follow.id, form).await
        }
        Verb::Cancel(many) => many::cancel(caller, many).await,
        Verb::Retry(retry) => many::retry(caller, retry).await,
        Verb::Purge(purge) => many::purge(caller, purge).await,
        Verb::Events(events) => events::events(caller, events).await,
        Verb::Deliveries(deliveries) => deliveries::deliveries(caller, deliveries).await,
    })
}
