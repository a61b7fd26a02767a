//! TeamCity: no variable holds a build's id; project, build configuration and build number together name a build, with its address
//! where newer servers give it (`BUILD_URL`).
//!
//! The agent's JVM runs one build after the other and starts a process a step: no process lives as long as a build.
//! Source: jetbrains.com/help/teamcity, predefined build parameters.

use super::{Absence, System};
use crate::model::job::{JobFacts, JobKey};
use crate::model::process::Variables;

#[derive(Debug)]
pub(super) struct TeamCity;

impl System for TeamCity {
    fn name(&self) -> &str {
        "teamcity"
    }

    fn variables(&self) -> Vec<&str> {
        vec![
            "TEAMCITY_VERSION",
            "TEAMCITY_PROJECT_NAME",
            "TEAMCITY_BUILDCONF_NAME",
            "BUILD_NUMBER",
            "BUILD_URL",
        ]
    }

    fn recognize(&self, variables: &Variables) -> Option<JobFacts> {
        variables.get("TEAMCITY_VERSION")?;
        let get = |name| variables.get(name).map(str::to_owned);
        let (project, name) = (get("TEAMCITY_PROJECT_NAME")?, get("TEAMCITY_BUILDCONF_NAME")?);
        let number = get("BUILD_NUMBER")?;
        let id = format!("{project}/{name}#{number}");
        let url = get("BUILD_URL");
        Some(JobFacts {
            // Two servers may have projects of one name.
            key: JobKey { ci: self.name().to_owned(), id: url.clone().unwrap_or_else(|| id.clone()) },
            id,
            name: Some(name),
            repository: Some(project),
            run: Some(number),
            url,
        })
    }

    fn absence(&self) -> Absence<'_> {
        Absence::ProvesNothing
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::assert_anchor;
    use super::*;

    #[test]
    fn a_build_is_named_by_its_project_configuration_and_number() {
        let build = |number| {
            TeamCity.recognize(&Variables::from([
                ("TEAMCITY_VERSION", "2025.11"),
                ("TEAMCITY_PROJECT_NAME", "Shop"),
                ("TEAMCITY_BUILDCONF_NAME", "Tests"),
                ("BUILD_NUMBER", number),
            ]))
        };
        assert_eq!(build("7").unwrap().id, "Shop/Tests#7");
        assert_ne!(build("7").unwrap().key, build("8").unwrap().key);
        assert_eq!(build(""), None, "without a number it may be any build");
        let jenkins = Variables::from([("BUILD_NUMBER", "7"), ("BUILD_URL", "https://ci/job/a/7")]);
        assert_eq!(TeamCity.recognize(&jenkins), None);
    }

    #[test]
    fn a_step_of_the_agents_jvm_is_the_anchor() {
        let tree = [("server", true), ("bash", true), ("java", false), ("java", false)];
        assert_anchor(&TeamCity, &tree, Some("bash"));
        assert_anchor(&TeamCity, &[("server", true)], None);
    }
}
